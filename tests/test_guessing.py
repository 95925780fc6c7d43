"""A daemon at which somebody guesses passwords: what that costs it, and what others notice."""

from __future__ import annotations

import base64
import re
import threading
import time
from pathlib import Path

import pytest
import requests

from httpnas.access import passwords
from httpnas.web import audit
from tests.access import files
from tests.access.files import rule, token, token_of
from tests.harness import PATIENCE, connect, receive_answer, twistd

#: Connections that guess, and guesses of each.
GUESSERS, GUESSES = 5, 2000
ALICE = ("alice", "secret")


def guesses(number: int) -> list[bytes]:
    """Return requests with passwords that are all different."""
    return [
        b"GET /file/f HTTP/1.1\r\nHost: nas\r\nAuthorization: Basic %b\r\n\r\n"
        % base64.b64encode(b"alice:%d-%d" % (number, guess))
        for guess in range(GUESSES)
    ]


def guess(port: int, number: int, statuses: list[int]) -> None:
    sent = guesses(number)
    with connect(port) as peer:
        for request in sent:
            peer.sendall(request)
            status, headers, _ = receive_answer(peer)
            statuses.append(status)
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= passwords.EVERY


def test_ten_thousand_guesses_cost_few_hashes_and_others_are_served(tmp_path: Path) -> None:
    auth = files.write(
        tmp_path,
        token("ci"),
        token("operator"),
        rule("operator", "/", ["see-metrics"]),
        *(rule(who, "/", ["read"]) for who in ("alice", "ci", "anonymous")),
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "f").write_bytes(b"x")
    with twistd(tmp_path / "root", f"--auth={auth}") as daemon:
        began = time.monotonic()
        url = daemon.url + "/file/f"
        session = requests.Session()
        assert session.get(url, auth=ALICE, timeout=PATIENCE).status_code == 200
        statuses: list[int] = []
        guessers = [
            threading.Thread(target=guess, args=(daemon.port, number, statuses))
            for number in range(GUESSERS)
        ]
        for each in guessers:
            each.start()
        bearing = {"Authorization": f"Bearer {token_of('ci')}"}
        seconds, others = [], []
        while any(each.is_alive() for each in guessers):
            for known in ({"auth": ALICE}, {"headers": bearing}, {}):
                asked = time.perf_counter()
                others.append(session.get(url, timeout=PATIENCE, **known).status_code)
                seconds.append(time.perf_counter() - asked)
        operator = {"Authorization": f"Bearer {token_of('operator')}"}
        metrics = requests.get(daemon.url + "/metrics", headers=operator, timeout=PATIENCE).text
        passed = time.monotonic() - began
        daemon.terminate()
        assert daemon.wait() == 0
        log = daemon.log()
    print(f"p99 of a small GET: {sorted(seconds)[len(seconds) * 99 // 100] * 1000:.1f} ms")
    assert len(others) > 30 and set(others) == {200}
    assert len(statuses) == GUESSERS * GUESSES and set(statuses) == {401, 429}
    most = passwords.AT_ONCE + passed / passwords.EVERY
    assert statuses.count(401) <= most
    hashed = re.search(r"^httpnas_passwords_hashed_total (\S+)$", metrics, re.M)
    assert hashed and 1 + statuses.count(401) == float(hashed[1]) <= 1 + most
    refused = re.search(r'^httpnas_problems_total{code="too-many-failures"} (\S+)$', metrics, re.M)
    assert refused and float(refused[1]) == statuses.count(429)
    lines = log.count("audit: request")
    assert 20 <= lines <= audit.AT_ONCE + 1 + passed / audit.EVERY
    assert "more refusals have no line" in log
    assert "secret" not in log


@pytest.mark.parametrize("listen, warns", [("127.0.0.2", False), ("0.0.0.0", True)])
def test_a_daemon_that_everybody_may_use_says_so(tmp_path: Path, listen: str, warns: bool) -> None:
    with twistd(tmp_path / "root", f"--listen=tcp:0:interface={listen}") as daemon:
        assert ("may do everything: --auth says" in daemon.log()) is warns
        assert daemon.log().count("http://127.0.0.1") == 1, "what only this machine reaches is fine"


def test_a_daemon_with_rules_does_not_warn(tmp_path: Path) -> None:
    auth = files.write(tmp_path)
    with twistd(tmp_path / "root", f"--auth={auth}", "--listen=tcp:0:interface=0.0.0.0") as daemon:
        assert "may do everything" not in daemon.log()


def test_the_workers_do_not_repeat_the_warning(tmp_path: Path) -> None:
    with twistd(tmp_path / "root", "--workers=2", "--listen=tcp:0:interface=0.0.0.0") as daemon:
        assert requests.get(daemon.url + "/file/", timeout=PATIENCE).status_code == 200
        assert daemon.log().count("may do everything") == 1
