"""Tokens of others: of a cluster for its service accounts, and of an OpenID provider."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import crypto
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorSSL
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair

from httpnas.access import authentication, jwks, jwts
from httpnas.access.jwts import LEEWAY
from httpnas.web.request import Request
from tests.access import files
from tests.access.files import link_key, rule
from tests.harness import Nas, logged

CLUSTER = "https://kubernetes.default.svc"
PROVIDER = "https://login.example"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"rsa": RSA, "other": OTHER, "ec": EC, "ed": ED}


def published(*kids: str, **more: Any) -> str:
    """Return a JWK Set."""
    keys = []
    for kid in kids:
        key = PRIVATE[kid]
        kind = {"rsa": "RS256", "other": "RS256", "ec": "ES256", "ed": "EdDSA"}[kid]
        algorithm: Any = jwt.get_algorithm_by_name(kind)
        keys.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **more})
    # What does not count is passed over.
    keys.append({"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"})
    keys.append({"kty": "RSA", "kid": "broken"})
    return json.dumps({"keys": keys})


def issuer(keys: str, kind: str = "kubernetes", *more: str) -> str:
    name, iss = ("cluster", CLUSTER) if kind == "kubernetes" else ("login", PROVIDER)
    lines = [f'name = "{name}"', f'kind = "{kind}"', f'issuer = "{iss}"', f'keys = "{keys}"']
    algorithms = 'algorithms = ["RS256", "ES256", "EdDSA"]'
    return "\n".join(["[[issuer]]", *lines, algorithms, *more, ""])


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    whole = {
        "iss": CLUSTER,
        "aud": ["httpnas"],
        "sub": "system:serviceaccount:team:loader",
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        **changed,
    }
    return {name: value for name, value in whole.items() if value is not None}


def signed(kid: str = "rsa", algorithm: str = "RS256", key: str = "", **changed: Any) -> str:
    return jwt.encode(claims(**changed), PRIVATE[key or kid], algorithm, headers={"kid": kid})


def by_hand(header: dict[str, Any], signature: Callable[[bytes], bytes]) -> str:
    """Return a token that no library would make."""
    parts = [base64.urlsafe_b64encode(json.dumps(p).encode()) for p in (header, claims())]
    text = b".".join(part.rstrip(b"=") for part in parts)
    return (text + b"." + base64.urlsafe_b64encode(signature(text)).rstrip(b"=")).decode()


PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
RULES = (
    rule("team:loader", "/team", ["read"]),
    rule("@system:serviceaccounts:team", "/team", ["list"]),
    rule("login/bob", "/bob", ["read"]),
    rule("@login/red", "/red", ["read"]),
)


def make(root: Path, auth: Path) -> Nas:
    nas = Nas(root, auth=auth)
    for name in ("team/f", "bob/f", "red/f"):
        (nas.root / name).parent.mkdir(parents=True, exist_ok=True)
        (nas.root / name).write_bytes(b"x")
    return nas


@pytest_twisted.async_yield_fixture
async def nas(tmp_path: Path) -> AsyncIterator[Nas]:
    """A daemon that has the keys in a file."""
    (tmp_path / "jwks.json").write_text(published("rsa", "ec", "ed"))
    oidc = issuer("jwks.json", "oidc", 'audience = "nas"', 'principal = "name"')
    nas = make(tmp_path / "root", files.write(tmp_path, issuer("jwks.json"), oidc, *RULES))
    yield nas
    await nas.stop()


async def status(nas: Nas, token: str, path: str = "/file/team/f") -> int:
    return (await nas.fetch("GET", path, headers={"Authorization": f"Bearer {token}"}))[0]


@pytest_twisted.ensureDeferred
async def test_a_service_account_is_a_principal(nas: Nas) -> None:
    for token in (signed(), signed("ec", "ES256"), signed("ed", "EdDSA")):
        for _ in range(2):
            assert await status(nas, token) == 200
            assert await status(nas, token, "/file/team/") == 200
            assert await status(nas, token, "/file/bob/f") == 403
    with logged() as events:
        await status(nas, signed())
    assert [e["request"]["principal"] for e in events if "request" in e] == ["team:loader"]


@pytest_twisted.ensureDeferred
async def test_claims_of_a_provider_tell_principal_and_groups(nas: Nas) -> None:
    token = signed(iss=PROVIDER, aud="nas", sub="1", name="bob", groups=["red", 7, "a b"])
    assert await status(nas, token, "/file/bob/f") == 200
    assert await status(nas, token, "/file/red/f") == 200
    assert await status(nas, token) == 403
    for name in (None, "", 7, "a b", ["bob"]):
        assert await status(nas, signed(iss=PROVIDER, aud="nas", name=name), "/file/bob/f") == 401


BAD: dict[str, Callable[[], str]] = {
    "expired": lambda: signed(exp=int(time.time()) - LEEWAY - 1),
    "not yet valid": lambda: signed(nbf=int(time.time()) + LEEWAY + 60),
    "of another audience": lambda: signed(aud="https://kubernetes.default.svc"),
    "of another issuer": lambda: signed(iss="https://evil.example"),
    "for the audience of another issuer": lambda: signed(iss=PROVIDER, name="bob"),
    "without an audience": lambda: signed(aud=None),
    "without an issuer": lambda: signed(iss=None),
    "without an expiry": lambda: signed(exp=None),
    "without a beginning": lambda: signed(nbf=None),
    "without a subject": lambda: signed(sub=None),
    "of somebody who is no account": lambda: signed(sub="system:node:n1"),
    "of an account with a line feed": lambda: signed(sub="system:serviceaccount:team:loader\n"),
    "with an expiry beyond all numbers": lambda: signed(exp=float("inf")),
    "with an expiry that is none": lambda: signed(exp="soon"),
    "signed by another key": lambda: signed("rsa", key="other"),
    "of an unknown key": lambda: signed("other"),
    "of a key with another type": lambda: signed("ec", "RS256", key="rsa"),
    "of an algorithm that is not configured": lambda: signed(algorithm="RS384"),
    "of a symmetric key": lambda: by_hand(
        {"alg": "HS256", "kid": "secret"}, lambda t: hmac.digest(b"secret", t, "sha256")
    ),
    "HS256 with the public key": lambda: by_hand(
        {"alg": "HS256", "kid": "rsa"}, lambda t: hmac.digest(PEM, t, "sha256")
    ),
    "alg none": lambda: by_hand({"alg": "none", "kid": "rsa"}, lambda t: b""),
    "alg None": lambda: by_hand({"alg": "None", "kid": "rsa"}, lambda t: b""),
    "alg of another type": lambda: by_hand({"alg": 7, "kid": "rsa"}, lambda t: b""),
    "without a key": lambda: by_hand({"alg": "RS256"}, lambda t: b""),
    "with a key of its own": lambda: by_hand(
        {"alg": "RS256", "jwk": json.loads(published("other"))["keys"][0]}, lambda t: b""
    ),
    "without a signature": lambda: signed().rpartition(".")[0] + ".",
    "empty": lambda: "..",
    "no base64": lambda: "é.é.é",
    "deep": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.x",
}


@pytest.mark.parametrize("what", BAD)
@pytest_twisted.ensureDeferred
async def test_a_token_does_not_count_that_is(nas: Nas, what: str) -> None:
    token = BAD[what]()
    for path in ("/file/team/f", "/file/bob/f", "/"):
        assert await status(nas, token.encode("latin-1").decode("latin-1"), path) == 401


@pytest_twisted.ensureDeferred
async def test_what_is_remembered_ends_with_the_token(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwts, "LEEWAY", 0)
    token = signed(exp=int(time.time()) + 2)
    assert await status(nas, token) == 200
    began = time.monotonic()
    while await status(nas, token) == 200:
        assert time.monotonic() - began < 5
    assert await status(nas, token) == 401


@pytest_twisted.ensureDeferred
async def test_what_is_remembered_ends_with_the_key(nas: Nas, tmp_path: Path) -> None:
    token = signed()
    assert await status(nas, token) == 200
    (tmp_path / "jwks.json").write_text(published("ec"))
    assert nas.authentication is not None
    await nas.authentication.reload()
    assert await status(nas, token) == 401
    assert await status(nas, signed("ec", "ES256")) == 200


@pytest_twisted.ensureDeferred
async def test_a_key_that_names_its_algorithm_is_for_that_alone(nas: Nas, tmp_path: Path) -> None:
    assert nas.authentication is not None
    auth = tmp_path / "auth.toml"
    auth.write_text(auth.read_text().replace('"RS256", ', '"RS256", "RS512", '))
    for more, expected in (({}, 200), ({"alg": "RS256"}, 401)):
        (tmp_path / "jwks.json").write_text(published("rsa", **more))
        await nas.authentication.reload()
        assert await status(nas, signed()) == 200
        assert await status(nas, signed(algorithm="RS512")) == expected


@pytest_twisted.ensureDeferred
async def test_what_is_remembered_is_bounded(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED", 2)
    for number in range(5):
        assert await status(nas, signed(jti=str(number))) == 200
    assert nas.authentication is not None
    assert len(nas.authentication._verified) == 2


@pytest_twisted.ensureDeferred
async def test_a_link_is_not_taken_for_a_token(nas: Nas, tmp_path: Path) -> None:
    assert nas.authentication is not None
    auth = tmp_path / "auth.toml"
    auth.write_text(auth.read_text() + link_key("k") + rule("team:loader", "/team", ["sign"]))
    await nas.authentication.reload()
    body = b'{"method": "GET", "path": "team/f", "seconds": 60}'
    headers = {"Authorization": f"Bearer {signed()}"}
    url = json.loads((await nas.fetch("POST", "/links", headers=headers, data=body))[1])["url"]
    assert (await nas.fetch("GET", url))[0] == 200
    link = url.partition("link=")[2]
    for shown in (link, f"GET {link}", f"GET\t{link}"):
        assert await status(nas, shown) == 401


# Keys that are fetched


class Published:
    """An issuer's keys, served by a daemon that can go away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "published"
        self._is_away = False
        self.nas = Nas(self._folder)
        self.url = f"{self.nas.url}/file/jwks.json"

    async def leave(self) -> None:
        """Be away from now on."""
        if not self._is_away:
            self._is_away = True
            await self.nas.stop()

    def publish(self, text: str) -> None:
        (self._folder / "jwks.json").write_text(text)

    def fetched(self, events: list[Any]) -> int:
        return sum(e.get("request", {}).get("name") == "/jwks.json" for e in events)


@pytest_twisted.async_yield_fixture
async def source(tmp_path: Path) -> AsyncIterator[Published]:
    source = Published(tmp_path)
    yield source
    await source.leave()


@pytest_twisted.async_yield_fixture
async def far(tmp_path: Path, source: Published) -> AsyncIterator[Nas]:
    """A daemon that fetches the keys."""
    source.publish(published("rsa"))
    nas = make(tmp_path / "root", files.write(tmp_path, issuer(source.url), *RULES))
    yield nas
    await nas.stop()


@pytest_twisted.ensureDeferred
async def test_keys_are_fetched_once(far: Nas, source: Published) -> None:
    with logged() as events:
        for _ in range(5):
            assert await status(far, signed(jti=str(time.time()))) == 200
    assert source.fetched(events) <= 1


@pytest_twisted.ensureDeferred
async def test_a_new_key_is_fetched_when_a_token_names_it_but_not_for_each_such_token(
    far: Nas, source: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status(far, signed()) == 200
    source.publish(published("ec"))
    monkeypatch.setattr(jwks, "AT_ONCE", 0.0)
    assert await status(far, signed("ec", "ES256")) == 200
    assert await status(far, signed()) == 401  # it is gone, and what was remembered as well
    monkeypatch.setattr(jwks, "AT_ONCE", 1000.0)
    with logged() as events:
        for _ in range(5):
            assert await status(far, signed("other")) == 401
    assert source.fetched(events) == 0


@pytest_twisted.ensureDeferred
async def test_keys_outlive_an_issuer_that_is_away_or_answers_nonsense(
    far: Nas, source: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status(far, signed()) == 200
    monkeypatch.setattr(jwks, "AT_ONCE", 0.0)
    for nonsense in ("", "{}", '{"keys": []}', "[" * 5000, " " * (2 << 20)):
        source.publish(nonsense)
        assert await status(far, signed("other")) == 401
        assert await status(far, signed(jti=nonsense[:9])) == 200
    await source.leave()
    assert await status(far, signed("other")) == 401
    assert await status(far, signed(jti="later")) == 200


@pytest_twisted.ensureDeferred
async def test_a_daemon_starts_without_its_issuer_and_says_that_it_is_away(
    tmp_path: Path, source: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "AT_ONCE", 0.0)
    nas = make(tmp_path / "root", files.write(tmp_path, issuer(source.url), *RULES))
    try:
        got = await nas.fetch("GET", "/", headers={"Authorization": f"Bearer {signed()}"})
        assert (got[0], got[2].getRawHeaders("Retry-After")) == (503, ["5"])
        assert json.loads(got[1])["type"] == "/docs/problems#issuer-away"
        source.publish(published("rsa"))
        assert await status(nas, signed()) == 200
    finally:
        await nas.stop()


# By https


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost that nobody else has signed; return it and its key."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(EC.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(EC, hashes.SHA256())
    )
    pem, key = folder / "ca.crt", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(EC.private_bytes(serialization.Encoding.PEM, *private))
    return pem, key


@pytest.mark.parametrize("trusted", [True, False])
@pytest_twisted.ensureDeferred
async def test_keys_come_by_https_from_whom_the_file_trusts(
    tmp_path: Path, source: Published, trusted: bool
) -> None:
    """As from the API server of a cluster, with a token for it."""
    source.publish(published("rsa"))
    pem, key = certificate(tmp_path)
    seen: list[list[bytes]] = []
    route = source.nas.site.route

    def asked(request: Request) -> None:
        seen.append(list(request.field_lines(b"Authorization")))
        route(request)

    source.nas.site.route = asked
    options = CertificateOptions(
        privateKey=KeyPair.load(key.read_bytes(), crypto.FILETYPE_PEM).original,
        certificate=Certificate.loadPEM(pem.read_bytes()).original,
    )
    port: Any = IReactorSSL(reactor).listenSSL(0, source.nas.site, options, interface="127.0.0.1")
    (tmp_path / "token").write_text("of the daemon\n")
    url = f"https://localhost:{port.getHost().port}/file/jwks.json"
    more = ['token = "token"', *['ca = "ca.crt"'] * trusted]
    nas = make(tmp_path / "root", files.write(tmp_path, issuer(url, "kubernetes", *more), *RULES))
    try:
        assert await status(nas, signed()) == (200 if trusted else 503)
        assert seen == ([[b"Bearer of the daemon"]] if trusted else [])
    finally:
        await nas.stop()
        await port.stopListening()
