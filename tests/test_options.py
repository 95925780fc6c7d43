"""The options, without a daemon: what they mean, and what is refused."""

from __future__ import annotations

import pytest

from httpnas.launch import CannotStart
from httpnas.options import Options


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STORAGE_PATH", "PORT", "HTTPNAS_DURABILITY", "HTTPNAS_DRAIN"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--nonsense"], {}, "nonsense"),
        (["leftover"], {}, "leftover"),
        (["--durability", "some"], {}, "--durability: 'some'"),
        (["--shared-by", "all"], {}, "--shared-by: 'all'"),
        (["--max-upload", "much"], {}, "--max-upload: 'much'"),
        (["--max-upload", "-1"], {}, "--max-upload: '-1'"),
        (["--memory=64M"], {}, "--memory: it must be at least 128M"),
        ([], {"HTTPNAS_MEMORY": "much"}, "HTTPNAS_MEMORY: 'much'"),
        (["--stall", "soon"], {}, "--stall: 'soon'"),
        (["--stall", "0"], {}, "--stall: it must be more than 0 seconds"),
        (["--drain", "-1"], {}, "--drain: '-1'"),
        (["--drain", "nan"], {}, "--drain: 'nan'"),
        (["--hosts=nas:3000"], {}, "--hosts: 'nas:3000'"),
        (["--hosts=nas/x"], {}, "--hosts: 'nas/x'"),
        (["--cors-origins=null"], {}, "--cors-origins: 'null'"),
        (["--cors-origins=a.example"], {}, "--cors-origins: 'a.example'"),
        (["--cors-origins=https://a.example/"], {}, "--cors-origins: 'https://a.example/'"),
        (["--resource-policy=all"], {}, "--resource-policy: 'all'"),
        (["--connections-per-client=-1"], {}, "--connections-per-client: '-1'"),
        (["--connections-per-client=some"], {}, "--connections-per-client: 'some'"),
        (["--proxies=10.1.2.3/16"], {}, "--proxies: 10.1.2.3/16 has host bits set"),
        ([], {"HTTPNAS_PROXIES": "nginx"}, "HTTPNAS_PROXIES: 'nginx'"),
        (["--headroom=lots"], {}, "--headroom: 'lots'"),
        ([], {"HTTPNAS_DURABILITY": "some"}, "HTTPNAS_DURABILITY: 'some'"),
        (["--tls-cert=a"], {}, "--tls-cert: it needs --tls-key"),
        (["--tls-key=a"], {}, "--tls-key: it needs --tls-cert"),
        (["--tls-client-ca=a"], {}, "--tls-client-ca: it needs --tls-cert"),
        (
            ["--tls-cert=a", "--tls-key=a", "--tls-client-ca=a"],
            {},
            "--tls-client-ca: it needs --auth",
        ),
        ([], {"HTTPNAS_TLS_CERT": "a"}, "--tls-cert: it needs --tls-key"),
        (["--plain-listen=3001"], {}, "--plain-listen: it needs --tls-cert"),
        (
            ["--tls-cert=a", "--tls-key=a", "--plain-redirect=443"],
            {},
            "--plain-redirect: it needs --plain-listen",
        ),
        (["--plain-redirect=0"], {}, "--plain-redirect: '0'"),
        (["--plain-redirect=65536"], {}, "--plain-redirect: '65536'"),
        (["--plain-redirect=https"], {}, "--plain-redirect: 'https'"),
        ([], {"HTTPNAS_DRAIN": "long"}, "HTTPNAS_DRAIN: 'long'"),
    ],
)
def test_what_could_never_hold_is_refused_with_one_line_and_status_1(
    arguments: list[str],
    env: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(CannotStart) as refused:
        Options().parseOptions(arguments)
    assert refused.value.code == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("httpnas: ") and said in lines[0]


def test_an_origin_may_be_spelled_in_any_way() -> None:
    options = Options()
    options.parseOptions(["--cors-origins=HTTPS://A.Example:443 http://b:80 http://b:443"])
    assert options["cors-origins"] == [b"https://a.example", b"http://b", b"http://b:443"]


def test_a_host_may_be_an_ipv6_address_with_or_without_brackets() -> None:
    options = Options()
    options.parseOptions(["--hosts=fd00::1 [fd00::2] 10.0.0.1 fd00:1:2:3:4:5:6:7"])
    assert options["hosts"] == [b"[fd00::1]", b"[fd00::2]", b"10.0.0.1", b"[fd00:1:2:3:4:5:6:7]"]
