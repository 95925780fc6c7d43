"""Which addresses are one client: what is limited for each client is counted by that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network

#: Addresses whose clients are remembered.
_KEPT = 1024


def network_of(text: str) -> Network:
    """Return the network that *text* is, such as ``10.0.0.0/8``, or one address.

    :raises ValueError: when it is neither.
    """
    return ip_network(text)


class Clients:
    """Tells clients apart by their addresses.

    Of IPv6, a /64 is one client: that is what one subscriber or machine gets (RFC 6177), who may
    use another address of it for each connection.

    :param proxies: what stands for many clients, and so for none.
    """

    def __init__(self, proxies: Sequence[Network] = ()) -> None:
        self._proxies = tuple(proxies)
        self.of = lru_cache(_KEPT)(self._of)

    def _of(self, host: str | None) -> bytes | None:
        """Return what stands for the client at *host*; None for a proxy or a Unix socket."""
        try:
            address = ip_address(host or "")
        except ValueError:
            return None
        whole = _plain(address)
        if any(whole in network for network in self._proxies):
            return None
        return whole.packed[:8]


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return an IPv4 address also if a socket for IPv6 took it (RFC 4291 section 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address
