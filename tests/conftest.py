"""What every test runs under: no network, few threads, and skips for hardware that is not there.

The guard is in place before any test module is imported, so that nothing can keep a reference to the real functions.
"""

import importlib.util
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

# How long a case takes depends on who shares the machine.
hypothesis.settings.register_profile("llmkit", deadline=None)
hypothesis.settings.load_profile("llmkit")

# Read once, when the libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Several workers share the cores, and threads that spin while they wait would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


class NetworkBlocked(RuntimeError):
    """A test tried to reach another machine.

    Deliberately not an OSError: libraries that fall back when a connection fails must not hide the attempt.
    """


def is_loopback(host: object) -> bool:
    """Whether a host, as the socket functions take it, is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def refuse_unless_loopback(host: object) -> None:
    if not is_loopback(host):
        raise NetworkBlocked(f"tests must not use the network, got host {host!r}; mark the test `network` if it has to")


class NetworkGuard:
    """Replaces the ways by which Python code reaches a host, and can put them back for a `network` test."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Callable[..., Any]]] = [
            (socket.socket, "connect", socket.socket.connect),
            (socket.socket, "connect_ex", socket.socket.connect_ex),
            (socket.socket, "sendto", socket.socket.sendto),
            (socket, "getaddrinfo", socket.getaddrinfo),
            (socket, "gethostbyname", socket.gethostbyname),
        ]

    def up(self) -> None:
        for owner, name, original in self._originals:
            wrap = self._wrap_lookup if owner is socket else self._wrap_method
            setattr(owner, name, wrap(original))

    def down(self) -> None:
        for owner, name, original in self._originals:
            setattr(owner, name, original)

    @staticmethod
    def _wrap_lookup(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(host: object, *args: Any, **kwargs: Any) -> Any:
            refuse_unless_loopback(host)
            return original(host, *args, **kwargs)

        return guarded

    @staticmethod
    def _wrap_method(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(sock: socket.socket, *args: Any) -> Any:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                refuse_unless_loopback(args[-1][0])
            return original(sock, *args)

        return guarded


guard = NetworkGuard()
guard.up()


@pytest.fixture(autouse=True)
def _network(request: pytest.FixtureRequest):
    """Lifts the guard for a test marked `network`, and only for it."""
    if request.node.get_closest_marker("network") is None:
        yield
        return
    guard.down()
    yield
    guard.up()


@pytest.fixture(scope="session", autouse=True)
def _torch_threads() -> None:
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("llama_cpp") and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
