"""Which addresses are one client."""

from __future__ import annotations

import pytest

from httpnas.fields.clients import Clients, network_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.3", "::ffff:10.1.2.3"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_these_are_one_client(one: str, other: str) -> None:
    clients = Clients()
    assert clients.of(one) == clients.of(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10.1.2.3", "10.1.2.4"),
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.4"),
    ],
)
def test_these_are_two_clients(one: str, other: str) -> None:
    clients = Clients()
    assert clients.of(one) != clients.of(other)


@pytest.mark.parametrize("host", [None, "", "/run/httpnas.sock", "10.1.2.3", "::ffff:10.1.9.9"])
def test_sockets_without_an_address_and_proxies_are_no_client(host: str | None) -> None:
    clients = Clients([network_of("10.1.0.0/16"), network_of("2001:db8::1")])
    assert clients.of(host) is None
    assert clients.of("10.2.0.1") and clients.of("2001:db8::2")
