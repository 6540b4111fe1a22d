"""The scripted server, and real servers on loopback, each started once."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import llmkit
from llmkit import BackendLLM
from tests.openai.scripted_server import ScriptedServer

STARTUP_S = 120
TINY = Path(llmkit.__file__).parent / "tiny"


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def load(server: ScriptedServer) -> Iterator[Callable[..., BackendLLM]]:
    """`llmkit.load` of the scripted server's model; what it loads is closed."""
    loaded: list[BackendLLM] = []

    def load(name: str | None = None, **options: Any) -> BackendLLM:
        loaded.append(llmkit.load(name or f"{server.url}#m", **options))
        return loaded[-1]

    yield load
    for llm in loaded:
        llm.close()


@pytest.fixture(scope="session")
def llama_cpp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-cpp-python's server with the embedded model."""
    yield from serving_llama_cpp(tmp_path_factory.mktemp("llama_cpp"))


@pytest.fixture(scope="session")
def transformers_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the embedded model."""
    port = free_port()
    options = ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(TINY), *options]
    yield from running(command, f"http://127.0.0.1:{port}", "/health", tmp_path_factory.mktemp("transformers"))


def serving_llama_cpp(folder: Path, model: Path = TINY / "model.gguf") -> Iterator[str]:
    """The base URL of llama-cpp-python's server while it runs; the model is called `tiny`."""
    port = free_port()
    options = ["--port", str(port), "--n_ctx", "512", "--n_threads", "1", "--model_alias", "tiny"]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), *options]
    yield from running(command, f"http://127.0.0.1:{port}", "/v1/models", folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def running(command: list[str], url: str, health: str, folder: Path) -> Iterator[str]:
    """A server's base URL while it runs; its words are in the failure if it does not come up."""
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        wait_until_up(url + health, process, log)
        yield url + "/v1"
    finally:
        process.terminate()
        process.wait(30)


def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"{url} did not come up: {log.read_text(errors='replace')[-2000:]}")
