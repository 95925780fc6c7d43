"""``helm test``: one file's way through the Service, with what the daemon's image has.

Arguments: the name of the Service, its port, and ``https`` if it speaks that. HTTPNAS_TOKEN_FILE
names a file with a token, where the daemon asks who it is.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
import time
import uuid

#: Seconds until the Service must have a pod that is ready.
PATIENCE = 60.0


def address(service: str) -> str:
    """Return the name of *service*, or its address where the cluster has no DNS."""
    try:
        socket.getaddrinfo(service, None)
    except OSError:
        found = os.environ.get(service.upper().replace("-", "_") + "_SERVICE_HOST")
        if not found:
            raise
        print(f"the name {service} means nothing here: using its address, {found}", flush=True)
        return found
    return service


def connect(host: str) -> http.client.HTTPConnection:
    if "https" not in sys.argv:
        return http.client.HTTPConnection(host, PORT, timeout=10)
    # It is about the way to the daemon; what is known of its authority is known to clients.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, PORT, timeout=10, context=context)


def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Return the status and the body of what is answered."""
    connection = connect(address(SERVICE))
    headers = {"Host": f"{SERVICE}:{PORT}"}
    if file := os.environ.get("HTTPNAS_TOKEN_FILE"):
        with open(file) as token:
            headers["Authorization"] = f"Bearer {token.read().strip()}"
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_ready() -> bool:
    try:
        return ask("GET", "/ready")[0] == 200
    except OSError as error:
        print(f"not yet: {error}", flush=True)
        return False


def check(method: str, path: str, status: int, sent: bytes | None, expected: bytes) -> bool:
    """Say whether the answer is the right one."""
    got = ask(method, path, sent)
    right = got[0] == status and got[1].startswith(expected)
    print("ok" if right else f"not {status} {expected!r}:", method, path, *got, flush=True)
    return right


def tour(path: str) -> bool:
    """Upload, append, count, download and delete a file; say whether all went well."""
    steps = [
        check("POST", path, 200, b"1\n2\n", b""),
        check("PUT", path, 200, b"3\n", b""),
        check("GET", f"{path}/wc", 200, None, b"3"),
        check("GET", path, 200, None, b"1\n2\n3\n"),
        check("DELETE", path, 200, None, b""),
        check("GET", path, 404, None, b""),
    ]
    return all(steps)


SERVICE, PORT = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + PATIENCE
while not is_ready():
    if time.monotonic() > deadline:
        sys.exit("no pod is ready")
    time.sleep(1)
if not tour(f"/file/helm-test-{uuid.uuid4()}.txt"):
    sys.exit("the tour has failed")
