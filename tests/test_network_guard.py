"""The guard in conftest: without it, the rule that tests use no network would be a wish."""

import socket
import urllib.request

import pytest

BLOCKED = "tests must not use the network"
TEST_ADDRESS = ("192.0.2.1", 80)  # reserved for documentation (RFC 5737): no host answers there


def test_name_lookup_is_refused() -> None:
    with pytest.raises(RuntimeError, match=BLOCKED):
        socket.getaddrinfo("example.com", 443)


def test_connection_to_an_address_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match=BLOCKED):
        sock.connect(TEST_ADDRESS)


def test_datagram_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(RuntimeError, match=BLOCKED):
        sock.sendto(b"", TEST_ADDRESS)


def test_refusal_is_not_swallowed_as_a_failed_connection() -> None:
    with pytest.raises(RuntimeError, match=BLOCKED):
        urllib.request.urlopen("http://example.com/", timeout=1)


def test_loopback_is_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client,
    ):
        assert client.getpeername()[0] == "127.0.0.1"
