"""The file of ``--auth``: what is wrong with it is said in one line, with file and line."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpnas.access.config import ConfigError, load
from httpnas.access.jwts import read_keys
from httpnas.access.passwords import BadPasswords, read_passwords
from httpnas.access.rules import Right
from tests.access import files

GOOD = """\
realm = "files of the team"
passwords = "htpasswd"

[groups]
team = ["alice", "ci"]

[[token]]
name = "ci"  # of the pipeline
sha256 = "HASH"
expires = 2999-01-01T00:00:00Z

[[link-key]]
id = "2026"
secret = "KEY"

[[rule]]
who = ["@team"]
path = "/team//a/./"
allow = ["read", "list"]

[[rule]]
who = ["anonymous"]
path = "/"
allow = ["see-metrics"]
""".replace("HASH", "0" * 64).replace("KEY", "A" * 44)


def write(folder: Path, text: str, passwords: str = f"alice:{files.HASHED}\n") -> str:
    (folder / "auth.toml").write_text(text)
    (folder / "htpasswd").write_text(passwords)
    return str(folder / "auth.toml")


def test_a_good_file_is_read(tmp_path: Path) -> None:
    policy = load(write(tmp_path, GOOD))
    assert policy.known("alice", "password").groups == {"team", "authenticated"}
    assert policy.known("alice", "password").rules.allow(Right.READ, b"team/a/x")
    assert policy.anonymous().groups == frozenset()
    assert policy.anonymous().rules.allow(Right.SEE_METRICS, b"")
    assert [*policy.stamps] == [str(tmp_path / "auth.toml"), str(tmp_path / "htpasswd")]
    assert policy.challenges == (
        'Basic realm="files of the team", charset="UTF-8"',
        'Bearer realm="files of the team"',
    )


@pytest.mark.parametrize(
    "old, new, line, why",
    [
        ('realm = "files of the team"', "realm = 1", 1, "a string"),
        ("files of the team", r"\"", 1, "quotes"),
        ("realm", "relm", 1, "no such key"),
        ('"htpasswd"', '"htpasswd', 2, ""),
        ('"htpasswd"', '"missing"', 0, "No such file"),
        ('"htpasswd"', "[" * 5000, 1, "nested"),
        ("team = [", "authenticated = [", 5, "authenticated"),
        ('"alice", "ci"', '"alice", 1', 5, "list of strings"),
        ('"alice", "ci"', '"alice", "@x"', 5, "@x"),
        ('"ci"  #', '"anonymous"  #', 8, "anonymous"),
        ('"ci"  #', '"a b"  #', 8, "a b"),
        ('"ci"  #', '"alice"  #', 1, "a user and a token"),
        ("0" * 64, "0" * 63, 9, "SHA-256"),
        ('"2026"', '"20.26"', 13, "an id"),
        ("[[link", '[certificates]\nprincipal = "OU"\n[[link', 13, "none of CN, DNS, email, URI"),
        ("[[link", '[certificates]\nprefix = ""\n[[link', 13, "taken for users"),
        ("[[link", '[certificates]\nprefix = "a b/"\n[[link', 13, "a word and a slash"),
        ("[[link", "[certificates]\nname = 1\n[[link", 13, "no such key"),
        (
            "[[link",
            '[[issuer]]\nname = "a"\nkind = "oidc"\nissuer = "a"\nkeys = "https://a/"\n'
            '[certificates]\nprefix = "a/"\n[[link',
            18,
            "an issuer has the same prefix",
        ),
        ("A" * 44, "A" * 40, 14, "32 bytes"),
        ("A" * 44, "!" * 44, 14, "32 bytes"),
        ("realm = ", "longest-link = 0\nrealm = ", 1, "seconds"),
        ("00Z", "00", 10, "zone"),
        ("expires = ", "expired = ", 7, "needs 'expires'"),
        ("2999-01-01T00:00:00Z", '"2999"', 10, "a time"),
        ('["@team"]', '["@tema"]', 17, "no group 'tema'"),
        ('["@team"]', "[]", 17, "somebody"),
        ('who = ["@team"]', 'whom = ["@team"]', 16, "needs 'who'"),
        ('"/team//a/./"', '"team"', 18, "slash"),
        ('"/team//a/./"', '"/team/../a"', 18, "'..'"),
        ('"read", "list"', '"read", "write"', 19, "'write' is not a right; these are: list, read"),
        ('allow = ["read", "list"]', "", 16, "allow or deny"),
        ('allow = ["read", "list"]', 'allow = ["read"]\ndeny = ["read"]', 20, "allowed and denied"),
        ('path = "/"\n', 'path = "/x"\n', 23, "see-metrics"),
        ('allow = ["see-metrics"]', 'allow = ["see-metrics"]\nalso = true', 25, "no such key"),
        ('[[rule]]\nwho = ["anon', '[[rul]]\nwho = ["anon', 21, "no such key"),
        ('[[rule]]\nwho = ["anon', '[rule]\nwho = ["anon', 21, ""),
    ],
)
def test_a_bad_file_is_told_of_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, why: str
) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD.replace(old, new)))
    message = str(caught.value)
    assert "\n" not in message
    assert why in message
    place = re.match(rf"{re.escape(str(tmp_path))}/(?:auth\.toml:(\d+)|missing): ", message)
    assert place, message
    assert int(place[1] or 0) == line, message


@pytest.mark.parametrize(
    "passwords, line",
    [
        ("alice:plain", 1),
        ("\nalice:$apr1$abcdefgh$xxxxxxxxxxxxxxxxxxxxxx", 2),
        ("alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", 1),
        ("alice:$2a$10$" + "a" * 53, 1),
        ("alice:$2y$15$" + "a" * 53, 1),
        ("alice:$argon2i$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g", 1),
        ("alice:$argon2id$v=19$m=9999999,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g", 1),
        ("alice:$argon2id$nonsense", 1),
        (f"a/b:{files.HASHED}", 1),
        (f"alice:{files.HASHED}\nalice:{files.HASHED}", 2),
        ("alice", 1),
    ],
)
def test_a_password_that_is_not_hashed_well_is_refused_and_not_shown(
    tmp_path: Path, passwords: str, line: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD, passwords))
    assert str(caught.value).startswith(f"{tmp_path}/htpasswd:{line}: ")
    kept = passwords.strip().partition(":")[2]
    assert not kept or kept not in str(caught.value)


def test_a_name_that_no_file_can_have_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file can be called so"):
        load(write(tmp_path, GOOD.replace('"htpasswd"', r'"ht\u0000"')))


@given(st.text(alphabet="$argon2id=,vmtp0123456789abc", max_size=60))
def test_a_hash_of_any_shape_is_taken_or_refused(rest: str) -> None:
    with contextlib.suppress(BadPasswords):
        read_passwords(f"alice:$argon2id${rest}")


@given(
    st.recursive(
        st.none() | st.text(max_size=5),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["keys", "kid", "kty", "n", "e", "crv", "x", "y", "alg", "use"]),
                x | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB"]),
            )
        ),
    )
)
def test_keys_of_any_shape_are_read_or_refused(members: object) -> None:
    for each in (members, {"keys": members}):
        with contextlib.suppress(ValueError):
            read_keys(json.dumps(each))


def test_a_file_that_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"# \n# \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.toml:2: this is not UTF-8"):
        load(str(tmp_path / "latin.toml"))
