"""``--tls-cert`` and what belongs to it: a real daemon, real sockets, and ``openssl s_client``."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock

from httpnas.tls import LOOKS, ServerCertificate
from tests.access import files
from tests.access.files import rule, token, token_of
from tests.certificates import FOR_SERVERS, Authority, Pair, Secret
from tests.harness import (
    PATIENCE,
    ROOT,
    TWISTD,
    Twistd,
    connect,
    logged,
    receive_all,
    twistd,
    wait_until,
)

#: Alerts (RFC 8446 section 6).
HANDSHAKE_FAILURE, PROTOCOL_VERSION = 40, 70
#: No cipher suite, but what says that the client would have had a higher version (RFC 7507).
FALLBACK = 0x5600
STAYS = "The certificate stays as it was before"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> str:
    """The file with the certificate of the authority."""
    path = tmp_path / "ca.crt"
    path.write_bytes(authority.crt)
    return str(path)


@pytest.fixture
def secret(authority: Authority, tmp_path: Path) -> Secret:
    return Secret(tmp_path / "secret", authority.server())


@pytest.fixture
def daemon(secret: Secret, tmp_path: Path) -> Iterator[Twistd]:
    with twistd(tmp_path / "root", *secret.options) as daemon:
        yield daemon


def served(port: int) -> int:
    """Return the serial number of the certificate that is shown at *port*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(connect(port)) as client:
        der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def serves(port: int, pair: Pair) -> Callable[[], bool]:
    return lambda: served(port) == pair.certificate.serial_number


def plain_port(daemon: Twistd) -> int:
    """Return the port of ``--plain-listen``."""
    found = re.search(r", http://127\.0\.0\.1:(\d+)", daemon.log())
    assert found
    return int(found[1])


# What is served.


def test_http_is_served_over_tls_and_beside_it_without(
    secret: Secret, ca: str, tmp_path: Path
) -> None:
    options = [*secret.options, "--plain-listen=tcp:0:interface=127.0.0.1"]
    with twistd(tmp_path / "root", *options) as daemon:
        assert daemon.url.startswith("https://")
        url = f"http://127.0.0.1:{plain_port(daemon)}/file/a"
        assert requests.post(url, b"x" * 300_000, timeout=PATIENCE).status_code == 200
        got = requests.get(daemon.url + "/file/a", verify=ca, timeout=PATIENCE)
        assert (got.status_code, got.content) == (200, b"x" * 300_000)
        assert b"HTTP/1" not in b"".join(_attempt(daemon.port, b"GET /file/a HTTP/1.0\r\n\r\n"))


def _attempt(port: int, sent: bytes) -> Iterator[bytes]:
    with connect(port) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionError):
            yield receive_all(client)


def test_an_endpoint_that_speaks_tls_itself_is_left_alone(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    other = authority.server()
    crt, key = other.write(tmp_path, "other")
    place = f"ssl:0:privateKey={key}:certKey={crt}:interface=127.0.0.1"
    with twistd(tmp_path / "root", *secret.options, listen=place) as daemon:
        assert serves(daemon.port, other)()
        assert requests.get(
            f"https://127.0.0.1:{daemon.port}/health", verify=ca, timeout=PATIENCE
        ).ok


def test_the_environment_will_do(secret: Secret, ca: str, tmp_path: Path) -> None:
    values = dict(option.removeprefix("--").split("=") for option in secret.options)
    env = {"HTTPNAS_TLS_CERT": values["tls-cert"], "HTTPNAS_TLS_KEY": values["tls-key"]}
    with twistd(tmp_path / "root", env=env) as daemon:
        assert requests.get(daemon.url + "/health", verify=ca, timeout=PATIENCE).ok


# What TLS offers, as testssl.sh asks for it.


def hello(version: int, suites: bytes) -> bytes:
    """Return a ClientHello of at most TLS 1.2 (RFC 5246 section 7.4.1.2) that offers *suites*."""
    algorithms = bytes.fromhex("040308040805080604010501060102010203")
    extensions = b"".join(
        struct.pack("!HH", number, len(content)) + content
        for number, content in (
            (10, bytes.fromhex("0006001d00170018")),  # groups
            (13, struct.pack("!H", len(algorithms)) + algorithms),
        )
    )
    compressions = b"\x02\x01\x00"  # deflate, null
    body = struct.pack("!H32sBH", version, os.urandom(32), 0, len(suites)) + suites
    body += compressions + struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return struct.pack("!BHH", 22, 0x0301, len(message)) + message


def greet(port: int, version: int, suites: bytes) -> tuple[int, int, int] | int:
    """Return version, cipher suite and compression of the ServerHello, or the code of an alert."""
    with connect(port) as client, client.makefile("rb") as answers:
        client.sendall(hello(version, suites))
        kind, _, length = struct.unpack("!BHH", answers.read(5))
        content = answers.read(length)
    if kind == 21:
        return content[1]
    assert (kind, content[0]) == (22, 2)
    version, session = struct.unpack_from("!H32xB", content, 4)
    suite, compression = struct.unpack_from("!HB", content, 39 + session)
    return version, suite, compression


def suites_of(port: int) -> set[int]:
    """Return all cipher suites of TLS 1.2 that *port* takes: who is chosen is not offered again."""
    taken = set()
    for first in range(0, 1 << 16, 1 << 12):
        left = set(range(first, first + (1 << 12))) - {FALLBACK}
        while (
            answer := greet(port, 0x0303, struct.pack(f"!{len(left)}H", *sorted(left)))
        ) != HANDSHAKE_FAILURE:
            assert isinstance(answer, tuple)
            version, suite, compression = answer
            assert (version, compression) == (0x0303, 0)
            taken.add(suite)
            left.remove(suite)
    return taken


@pytest.mark.parametrize(
    "with_rsa, expected",
    [
        # ECDHE with AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305 (RFC 5289, RFC 7905).
        (False, {0xC02B, 0xC02C, 0xCCA9}),
        (True, {0xC02F, 0xC030, 0xCCA8}),
    ],
    ids=["EC", "RSA"],
)
def test_of_all_cipher_suites_of_tls_1_2_only_the_good_ones_are_taken(
    authority: Authority, tmp_path: Path, with_rsa: bool, expected: set[int]
) -> None:
    key = rsa.generate_private_key(65537, 2048) if with_rsa else None
    secret = Secret(tmp_path / "secret", authority.server(key))
    with twistd(tmp_path / "root", *secret.options) as daemon:
        assert suites_of(daemon.port) == expected
        common = b"\xc0\x2b\xc0\x2f\xc0\x13\xc0\x09\x00\x2f\x00\x35\x00\x0a\x00\x05"
        for version in (0x0300, 0x0301, 0x0302):
            assert greet(daemon.port, version, common) == PROTOCOL_VERSION


def s_client(daemon: Twistd, *options: str, sent: str = "") -> str:
    """Return what ``openssl s_client`` says."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{daemon.port}", *options]
    run = subprocess.run(
        command,
        input=sent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return run.stdout


def test_versions_protocols_compression_and_renegotiation(daemon: Twistd) -> None:
    for old in ("-tls1", "-tls1_1"):
        refused = s_client(daemon, old, "-cipher", "ALL:@SECLEVEL=0")
        assert "alert protocol version" in refused
    assert "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384" in s_client(daemon, "-tls1_2")
    assert "New, TLSv1.3, Cipher is TLS_" in s_client(daemon, "-tls1_3")
    assert "ALPN protocol: http/1.1" in s_client(daemon, "-alpn", "h2,http/1.1")
    assert "No ALPN negotiated" in s_client(daemon, "-alpn", "h2")
    assert "Compression: NONE" in s_client(daemon, "-tls1_2", "-comp")
    renegotiating = s_client(daemon, "-tls1_2", sent="R\n")
    assert "RENEGOTIATING" in renegotiating and "no renegotiation" in renegotiating
    assert_no_resumption(daemon)


def assert_no_resumption(daemon: Twistd) -> None:
    for version in ("-tls1_2", "-tls1_3"):
        again = s_client(daemon, version, "-reconnect")
        assert "Reused," not in again and again.count("\nNew, TLSv1.") == 6


# Renewal.


class Load:
    """Clients that ask all the time, each in a thread.

    :ivar failures: what went wrong.
    :ivar answers: how many answers there were.
    """

    def __init__(self, daemon: Twistd, ca: str) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self._port = daemon.port
        self._context = ssl.create_default_context(cafile=ca)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(each,), daemon=True)
            for each in (self._kept, self._anew)
        ]

    def __enter__(self) -> Load:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for each in self._threads:
            each.join(PATIENCE)

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self._port, context=self._context, timeout=PATIENCE
        )

    def _guard(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Exception as error:
            self.failures.append(f"{ask.__name__}: {error!r}")

    def _ask(self, connection: http.client.HTTPSConnection) -> None:
        connection.request("GET", "/health")
        status = connection.getresponse().read() and 200
        assert status == 200
        self.answers += 1

    def _kept(self) -> None:
        connection = self.connection()
        self._ask(connection)
        first = connection.sock
        while not self._ended.wait(0.01):
            self._ask(connection)
            assert connection.sock is first, "the connection was closed"

    def _anew(self) -> None:
        while not self._ended.wait(0.01):
            with contextlib.closing(self.connection()) as connection:
                self._ask(connection)


@pytest.mark.parametrize("workers, renewals", [(1, 4), (2, 2)])
def test_a_certificate_is_renewed_under_load_and_nobody_notices(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path, workers: int, renewals: int
) -> None:
    with twistd(tmp_path / "root", *secret.options, f"--workers={workers}") as daemon:
        with Load(daemon, ca) as load:
            slow = load.connection()
            slow.putrequest("POST", "/file/slow")
            slow.putheader("Content-Length", "10")
            slow.endheaders(b"first")
            for _ in range(renewals):
                before, pair = load.answers, authority.server()
                secret.renew(pair)
                is_new = serves(daemon.port, pair)
                wait_until(lambda n=is_new: all(n() for _ in range(8)), "the new certificate")  # type: ignore[misc]
                wait_until(lambda b=before: load.answers > b + 20, "some answers")  # type: ignore[misc]
            slow.send(b" last")
            assert slow.getresponse().status == 200
        assert load.failures == []
        got = requests.get(daemon.url + "/file/slow", verify=ca, timeout=PATIENCE)
        assert got.content == b"first last"
        wait_until(lambda: daemon.log().count("was read again") == renewals * workers, "the lines")
        assert STAYS not in daemon.log()


def test_a_broken_new_pair_changes_nothing_and_is_one_line(
    secret: Secret, authority: Authority, daemon: Twistd
) -> None:
    before, pair, good = served(daemon.port), authority.server(), authority.server()
    key = pair.pem_of_key()

    def lines() -> list[str]:
        return [line for line in daemon.log().splitlines() if STAYS in line]

    for number, (crt, new_key, said) in enumerate(
        (
            (pair.crt, good.pem_of_key(), "tls.key: it is not the key of "),
            (pair.crt, b"", "tls.key: it has no private key in PEM"),
            (pair.crt, None, "tls.key: No such file or directory"),
            (b"nonsense", key, "tls.crt: it has no certificate in PEM"),
        )
    ):
        secret.put(crt, new_key)
        wait_until(lambda n=number: len(lines()) > n, "the line")  # type: ignore[misc]
        assert said in lines()[-1] and '"level": "error"' in lines()[-1]
        assert served(daemon.port) == before
    secret.renew(good)
    wait_until(serves(daemon.port, good), "the good certificate")
    assert len(lines()) == 4
    assert "Traceback" not in daemon.log()


class Time(Clock):
    """A reactor whose time passes only when a test lets it."""

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:
        IReactorFromThreads(reactor).callFromThread(call, *args)


@pytest_twisted.ensureDeferred
async def test_a_certificate_whose_key_comes_later_is_no_reason_to_complain(
    authority: Authority, tmp_path: Path
) -> None:
    crt, key = authority.server().write(tmp_path, "tls")
    time, pair = Time(), authority.server()
    certificate = ServerCertificate(time, {"--tls-cert": crt, "--tls-key": key})
    certificate.start()

    async def look() -> None:
        time.advance(LOOKS)
        for _ in range(4):  # the calls of one look, which the only thread makes in their order
            await certificate._in_thread(lambda: None)

    with logged() as events:
        Path(crt).write_bytes(pair.crt)
        await look()
        Path(key).write_bytes(pair.pem_of_key())
        for _ in range(3):
            await look()
    certificate.stop()
    assert [event["log_format"] for event in events] == ["{path} was read again"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_reads_the_certificate_again_though_it_has_not_changed(
    secret: Secret, tmp_path: Path, workers: int
) -> None:
    with twistd(tmp_path / "root", *secret.options, f"--workers={workers}") as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: daemon.log().count("was read again") == workers, "it to be read again")


# What ends the daemon.


@pytest.mark.parametrize(
    "changed, content, said",
    [
        ("tls.crt", None, "--tls-cert {}/tls.crt: No such file or directory"),
        ("tls.crt", b"x", "--tls-cert {}/tls.crt: it has no certificate in PEM that can be read"),
        ("tls.key", b"x", "--tls-key {}/tls.key: it has no private key in PEM that can be read"),
        ("tls.key", b"encrypted", "--tls-key {}/tls.key: it needs a password"),
        ("both", b"weak", "--tls-cert {}/tls.crt: ee key too small"),
        ("tls.key", b"other", "--tls-key {0}/tls.key: it is not the key of {0}/tls.crt"),
        (
            "ca.crt",
            b"x",
            "--tls-client-ca {}/ca.crt: it has no certificate in PEM that can be read",
        ),
    ],
)
def test_what_cannot_be_used_at_the_start_ends_the_daemon_with_one_line(
    authority: Authority,
    tmp_path: Path,
    changed: str,
    content: bytes | None,
    said: str,
) -> None:
    pair = authority.server()
    crt, key = pair.write(tmp_path, "tls")
    (tmp_path / "ca.crt").write_bytes(authority.crt)
    special = {
        b"encrypted": pair.pem_of_key(b"secret"),
        b"other": authority.server().pem_of_key(),
    }
    if content == b"weak":
        authority.server(rsa.generate_private_key(65537, 1024)).write(tmp_path, "tls")
    elif content is None:
        os.unlink(tmp_path / changed)
    else:
        (tmp_path / changed).write_bytes(special.get(content, content))
    auth = files.write(tmp_path)
    run = subprocess.run(
        [
            *TWISTD,
            *("-n", "--pidfile=", "httpnas", f"--storage={tmp_path}/root", "--listen=tcp:0"),
            *(f"--tls-cert={crt}", f"--tls-key={key}", f"--tls-client-ca={tmp_path}/ca.crt"),
            *(f"--auth={auth}", "--workers=2"),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"httpnas: {said.format(tmp_path)}\n"


# The redirect.


@pytest.fixture
def redirecting(secret: Secret, tmp_path: Path) -> Iterator[int]:
    """A port that sends clients to HTTPS, of a daemon that asks who they are."""
    auth = files.write(tmp_path, rule("alice", "/", ["read"]))
    options = [
        *secret.options,
        f"--auth={auth}",
        "--hosts=nas.example [::1] localhost",
        "--plain-listen=tcp:0:interface=127.0.0.1",
    ]
    with twistd(tmp_path / "root", *options, "--plain-redirect=8443") as daemon:
        yield plain_port(daemon)
        assert "audit:" not in daemon.log()


def test_who_comes_without_tls_is_sent_to_the_same_at_https(redirecting: int) -> None:
    for method, path, host, location in (
        ("GET", "/file/a%2Fb//c?x=%20&y", "nas.example", "nas.example:8443/file/a%2Fb//c?x=%20&y"),
        ("GET", "/", "localhost:3000", "localhost:8443/"),
        ("POST", "/file/a", "[::1]:80", "[::1]:8443/file/a"),
        ("DELETE", "/file/a?", "NAS.example:80", "nas.example:8443/file/a"),
        ("GET", "http://nas.example/metrics", "nas.example", "nas.example:8443/metrics"),
    ):
        client = http.client.HTTPConnection("127.0.0.1", redirecting, timeout=PATIENCE)
        client.request(method, path, b"x" if method == "POST" else None, {"Host": host})
        answer = client.getresponse()
        assert (answer.status, answer.getheader("Location")) == (308, f"https://{location}")
        answer.read()
        client.close()


def test_probes_are_answered_without_tls(redirecting: int) -> None:
    for path in ("/health", "/ready", "/file"):
        url = f"http://127.0.0.1:{redirecting}{path}"
        got = requests.get(url, timeout=PATIENCE, allow_redirects=False)
        assert got.status_code == 200, path


def test_nobody_is_sent_to_a_name_that_is_not_ours_or_is_not_there(redirecting: int) -> None:
    for head in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"):
        with connect(redirecting) as client:
            client.sendall(head)
            client.shutdown(socket.SHUT_WR)
            answer = receive_all(client)
        assert answer[8:13] == b" 421 " and b"Location" not in answer


def test_the_usual_port_is_not_named_and_https_is_served(
    secret: Secret, ca: str, tmp_path: Path
) -> None:
    options = [*secret.options, "--plain-listen=tcp:0:interface=127.0.0.1", "--plain-redirect=443"]
    with twistd(tmp_path / "root", *options) as daemon:
        url = f"http://localhost:{plain_port(daemon)}/file/a"
        got = requests.put(url, b"x", timeout=PATIENCE, allow_redirects=False)
        assert (got.status_code, got.headers["Location"]) == (308, "https://localhost/file/a")
        assert requests.get(daemon.url + "/file/a", verify=ca, timeout=PATIENCE).status_code == 404


# Certificates of clients.


class Guarded:
    """A daemon that takes certificates of clients."""

    def __init__(self, daemon: Twistd, ca: str, folder: Path) -> None:
        self.daemon = daemon
        self._ca = ca
        self._folder = folder

    def ask(
        self, path: str, pair: Pair | None = None, method: str = "GET", **options: object
    ) -> requests.Response:
        """Return the answer to who shows *pair*."""
        shown = None if pair is None else pair.write(self._folder, "shown")
        url = self.daemon.url + path
        return requests.request(
            method,
            url,
            cert=shown,
            verify=self._ca,
            timeout=PATIENCE,
            **options,  # type: ignore[arg-type]
        )

    def refuses(self, pair: Pair) -> bool:
        """Tell whether the handshake fails for who shows *pair*."""
        try:
            self.ask("/health", pair)
        except requests.ConnectionError as error:
            return "alert" in str(error)
        return False


@contextlib.contextmanager
def guarded(secret: Secret, ca: str, folder: Path, *tables: str) -> Iterator[Guarded]:
    auth = files.write(folder, *tables)
    options = [*secret.options, f"--tls-client-ca={ca}", f"--auth={auth}"]
    with twistd(folder / "root", *options) as daemon:
        yield Guarded(daemon, ca, folder)


CN = "[certificates]\n"


def test_a_certificate_that_verifies_makes_a_principal(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    loader = authority.pair("loader")
    tables = [
        token("ci"),
        rule("cert/loader", "/in", ["create", "read"]),
        rule("ci", "/ci", ["read"]),
        rule("cert/loader", "/", ["see-metrics"]),
        CN,
    ]
    with guarded(secret, ca, tmp_path, *tables) as nas:
        posted = nas.ask("/file/in/a", loader, "POST", data=b"x")
        assert (posted.status_code, nas.ask("/file/in/a", loader).content) == (200, b"x")
        assert nas.ask("/file/ci/a", loader).status_code == 403
        assert nas.ask("/file/in/a").status_code == 401
        assert nas.ask("/file/in/a", authority.pair("other")).status_code == 403
        # Other credentials say more about one request than the connection does.
        bearing = {"Authorization": f"Bearer {token_of('ci')}"}
        assert nas.ask("/file/ci/a", loader, headers=bearing).status_code == 404
        assert nas.ask("/file/in/a", loader, headers=bearing).status_code == 403
        wrong = {"Authorization": "Bearer nonsense"}
        assert nas.ask("/file/in/a", loader, headers=wrong).status_code == 401
        metrics = nas.ask("/metrics", loader).text
        counted = re.search(r'identified_requests_total{identity="certificate"} (\d+)', metrics)
        assert counted and int(counted[1]) >= 4
        log = nas.daemon.log()
        assert '"principal": "cert/loader"' in log
        assert "as cert/other was refused" in log


def test_who_shows_nothing_is_anonymous(secret: Secret, ca: str, tmp_path: Path) -> None:
    with guarded(secret, ca, tmp_path, rule("anonymous", "/", ["list"]), CN) as nas:
        assert nas.ask("/file/").status_code == 200
        assert "Acceptable client certificate CA names\nCN = authority\n" in s_client(nas.daemon)
        assert_no_resumption(nas.daemon)


def test_certificates_that_do_not_verify_end_the_handshake_and_are_audited(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    wrong = {
        "of another authority": Authority().pair("loader"),
        "expired": authority.pair("loader", days=-1),
        "for servers": authority.pair("loader", usage=FOR_SERVERS),
    }
    with guarded(secret, ca, tmp_path, rule("anonymous", "/", ["list"]), CN) as nas:
        for number, (name, pair) in enumerate(wrong.items(), 1):
            assert nas.refuses(pair), name
            wait_until(
                lambda n=number: nas.daemon.log().count("audit: the certificate of 127.0.0.1") == n,  # type: ignore[misc]
                name,
            )
        assert not nas.refuses(authority.pair("loader"))
        assert "Traceback" not in nas.daemon.log()


def test_the_name_is_the_one_that_was_configured(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    uri = x509.UniformResourceIdentifier("spiffe://a.example/loader")
    tables = [
        rule("spiffe/spiffe://a.example/loader", "/", ["list"]),
        '[certificates]\nprincipal = "URI"\nprefix = "spiffe/"\n',
    ]
    with guarded(secret, ca, tmp_path, *tables) as nas:
        assert nas.ask("/file/", authority.pair(alternatives=[uri])).status_code == 200
        assert nas.ask("/file/", authority.pair("loader")).status_code == 401
        assert "needs one URI" in nas.ask("/file/", authority.pair("loader")).json()["detail"]


def test_a_certificate_means_nothing_to_a_file_that_does_not_say_what(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    with guarded(secret, ca, tmp_path, rule("cert/loader", "/", ["list"])) as nas:
        assert nas.ask("/file/", authority.pair("loader")).status_code == 401


def test_links_of_who_has_a_certificate_count(
    secret: Secret, authority: Authority, ca: str, tmp_path: Path
) -> None:
    tables = [files.link_key("k"), rule("cert/loader", "/a", ["read", "sign"]), CN]
    with guarded(secret, ca, tmp_path, *tables) as nas:
        (tmp_path / "root" / "a").write_bytes(b"x")
        wanted = {"method": "GET", "path": "/a", "seconds": 60}
        made = nas.ask("/links", authority.pair("loader"), "POST", json=wanted)
        assert made.status_code in (200, 201), made.text
        assert nas.ask(made.json()["url"]).content == b"x"


def test_another_authority_counts_from_the_moment_that_its_file_has_changed(
    secret: Secret, authority: Authority, tmp_path: Path
) -> None:
    old, new = Authority("old"), Authority("new")
    clients, servers = tmp_path / "clients.crt", tmp_path / "servers.crt"
    clients.write_bytes(old.crt)
    servers.write_bytes(authority.crt)
    auth = files.write(tmp_path, rule("cert/loader", "/", ["list"]), CN)
    options = [*secret.options, f"--tls-client-ca={clients}", f"--auth={auth}"]
    with twistd(tmp_path / "root", *options) as daemon:
        nas = Guarded(daemon, str(servers), tmp_path)
        assert nas.ask("/file/", old.pair("loader")).status_code == 200
        assert nas.refuses(new.pair("loader"))
        clients.write_bytes(new.crt)
        wait_until(lambda: "was read again" in daemon.log(), "the file to be read again")
        assert nas.refuses(old.pair("loader"))
        assert nas.ask("/file/", new.pair("loader")).status_code == 200
