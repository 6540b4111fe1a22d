"""Models from a hub: a server on this machine that speaks the hub's protocol, and the real client.

It serves the embedded model under several names, or the errors that the real hub answers with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread

import huggingface_hub.constants as hub_constants
import pytest

import llmkit
from llmkit.errors import ModelDownloadError, ModelError, ModelInvalid, ModelNotDownloaded

TINY = Path(str(files("llmkit") / "tiny"))
COMMIT = hashlib.sha1(b"the only commit").hexdigest()
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


_ADDRESS = re.compile(r"(?:/api/models)?/([^/]+)/([^/]+)/(revision|tree|resolve)/([^/?]+)/?([^?]*)")


def _files() -> list[Path]:
    return [path for path in TINY.iterdir() if path.is_file()]


class Hub(ThreadingHTTPServer):
    """The hub, as far as downloading goes; `requested` holds the paths that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.requested: list[str] = []
        self.missing: set[str] = set()


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the hub does, for `org/model` at `main`, and with errors for other names."""

    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        match = _ADDRESS.match(self.path)
        organisation, repository, kind, revision, file = match.groups() if match else ("",) * 5
        if organisation == "gated":
            self._refuse(403, "GatedRepo")
        elif organisation == "broken":
            self._refuse(400, "")
        elif (organisation, repository) != ("org", "model"):
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif kind == "tree":
            sizes = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT} for path in _files()
            ]
            self._answer(json.dumps(sizes).encode(), "application/json")
        elif kind == "revision":
            names = [{"rfilename": path.name} for path in _files()]
            self._answer(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": names}).encode(), "application/json")
        elif file in self.server.missing or not (TINY / file).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            self._answer((TINY / file).read_bytes(), "application/octet-stream")

    do_HEAD = do_GET

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = Thread(target=server.serve_forever)
    thread.start()
    address, template = f"http://127.0.0.1:{server.server_port}", hub_constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(hub_constants.ENDPOINT, address))
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["transformers:org/model", "llama_cpp:org/model:model.gguf"])
def test_a_model_is_downloaded_once_and_then_opens_no_connection(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name.startswith("llama_cpp"):
        pytest.importorskip("llama_cpp")
    with llmkit.load(name) as llm:
        assert llm.run(QUESTION) == ANSWER
    assert hub.requested
    hub.requested.clear()
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with llmkit.load(name, local_files_only=True) as llm:
        assert llm.run(QUESTION) == ANSWER
    assert not hub.requested


def test_only_what_is_loaded_is_downloaded(hub: Hub) -> None:
    llmkit.load("transformers:org/model").close()
    assert not [path for path in hub.requested if path.endswith(".gguf")]


def test_a_download_that_broke_off_is_completed(hub: Hub, tmp_path: Path) -> None:
    llmkit.load("transformers:org/model").close()
    (weights,) = tmp_path.glob("models--org--model/snapshots/*/model.safetensors")
    weights.unlink()
    with pytest.raises(ModelNotDownloaded, match="local_files_only is set"):
        llmkit.load("transformers:org/model", local_files_only=True)
    with llmkit.load("transformers:org/model") as llm:
        assert llm.run(QUESTION) == ANSWER


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("transformers:no/such", ModelInvalid, "the hub has no model 'no/such', .*no such repository"),
        ("transformers:org/model@old", ModelInvalid, "the hub has no model 'org/model@old': no such revision"),
        ("llama_cpp:org/model:big.gguf", ModelInvalid, "the hub has no model 'org/model:big.gguf': no such file"),
        ("transformers:gated/model", ModelDownloadError, "'gated/model' is gated: accept its terms and set HF_TOKEN"),
        ("transformers:broken/model", ModelDownloadError, "'broken/model' could not be downloaded"),
        ("transformers:org/mo del", ModelInvalid, "'org/mo del' is neither a path nor a hub id"),
    ],
)
def test_the_hubs_errors_say_what_is_wrong(hub: Hub, name: str, error: type[ModelError], message: str) -> None:
    if name.startswith("llama_cpp"):
        pytest.importorskip("llama_cpp")
    with pytest.raises(error, match=message):
        llmkit.load(name)


def test_a_hub_that_cannot_be_reached_is_told_from_one_that_is_switched_off(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelDownloadError, match=r"could not be downloaded: .*refused"):
        llmkit.load("transformers:org/model")
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotDownloaded, match="the hub is offline"):
        llmkit.load("transformers:org/model")
