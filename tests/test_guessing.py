"""A daemon at which somebody guesses passwords: what that costs it, and what others notice."""

from __future__ import annotations

import base64
import re
import threading
import time
from pathlib import Path

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
