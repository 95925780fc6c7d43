"""A proxy that serves a daemon below a path of its own, and strips it from what it passes on.

So does an Ingress of nginx with ``rewrite-target``, or Traefik's ``StripPrefix``.
Whatever is not below the path is not the daemon's: it is answered with 404.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator

PREFIX = "/nas"
_NOWHERE = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 7\r\n\r\noutside"


class _Proxied(socketserver.StreamRequestHandler):
    upstream: int

    def handle(self) -> None:
        head = b""
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if not line.lower().startswith(b"connection:"):
                head += line
        method, target, rest = [*head.split(b" ", 2), b"", b""][:3]
        if not re.match(rb"%b[/?]" % PREFIX.encode(), target):
            self.wfile.write(_NOWHERE)
            return
        with socket.create_connection(("127.0.0.1", self.upstream)) as daemon:
            stripped = target.removeprefix(PREFIX.encode())
            daemon.sendall(b" ".join([method, stripped, rest]) + b"Connection: close\r\n\r\n")
            threading.Thread(target=self._pass_on, args=(daemon,), daemon=True).start()
            with contextlib.suppress(OSError):
                while received := daemon.recv(1 << 16):
                    self.wfile.write(received)

    def _pass_on(self, daemon: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while body := self.rfile.read1(1 << 16):
                daemon.sendall(body)


@contextlib.contextmanager
def below_a_prefix(port: int) -> Iterator[str]:
    """Serve the daemon at *port* below :data:`PREFIX` for as long as the block.

    :return: the address of its root, with a slash at the end.
    """
    handler = type("_Handler", (_Proxied,), {"upstream": port})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}/"
        proxy.shutdown()
