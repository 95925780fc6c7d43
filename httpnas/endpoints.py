"""Where the daemon listens."""

from __future__ import annotations

import re
import socket
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer


@implementer(IStreamServerEndpoint)
class Everywhere:
    """All addresses of this machine at one port: of IPv4, and of IPv6 if the kernel has it.

    The endpoint ``tcp`` is IPv4 alone. The endpoint ``tcp6`` cannot be had without IPv6, and
    leaves IPv4 to the system (``net.ipv6.bindv6only``).
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor = reactor
        self._port = port

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen on one socket for both families (ipv6(7), ``IPV6_V6ONLY``)."""
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", self._port), family=family, dualstack_ipv6=both) as bound:
            bound.setblocking(False)
            port: IListeningPort = self._reactor.adoptStreamPort(bound.fileno(), family, factory)
        return port


def endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """Return the endpoint for *description*.

    :param description: ``PORT`` for that port on loopback, ``*:PORT`` on all addresses, or as
        Twisted has it.
    :raises ValueError: or another exception if it is none.
    """
    if everywhere := re.fullmatch(r"\*:([0-9]+)", description):
        return Everywhere(reactor, int(everywhere[1]))
    if description.isdigit():
        description = f"tcp:{description}:interface=127.0.0.1"
    found: IStreamServerEndpoint = serverFromString(reactor, description)
    return found
