"""A server that answers what it was told to answer, byte by byte, and behaves as badly as it was told to."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = b"data: [DONE]\n\n"
HANG = "hang"


@dataclass(frozen=True)
class Answer:
    """One answer: bytes are sent as they are, a number is a pause in seconds, `HANG` waits until the client leaves."""

    pieces: Sequence[bytes | float | str] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream; charset=utf-8"
    cut: bool = False


DROPPED = Answer()
"""The connection is closed without a word."""


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at_s: float
    client: tuple[str, int]


def event(data: object) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text} if text is not None else {}, "finish_reason": finish, **more}
    return event({"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    counts = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return event(
        {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [], "usage": counts}
    )


def saying(*texts: str, finish: str = "stop") -> Answer:
    """A well-behaved answer."""
    return Answer([*(delta(text) for text in texts), delta(finish=finish), usage(3, len(texts)), DONE])


def refusing(status: int, body: object = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer([json.dumps(body or {"error": {"message": "no"}}).encode()], status, named, "application/json")


class ScriptedServer:
    """Answers requests in turn; the last answer is given again and again. Or a function makes the answer."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [saying("ok")]
        self.answer_to: Callable[[Seen], Answer] | None = None
        self.on_request: Callable[[], object] = lambda: None
        self.requests: list[Seen] = []
        self.n_connections = self.n_open = 0
        self.n_at_once = self.most_at_once = 0
        self.left = threading.Event()
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [seen.body for seen in self.requests]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def take(self, seen: Seen) -> Answer:
        with self._lock:
            self.requests.append(seen)
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
            if self.answer_to is None:
                return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return self.answer_to(seen)

    def given(self) -> None:
        with self._lock:
            self.n_at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.n_connections += 1
            server.n_open += 1

        def finish(self) -> None:
            server.n_open -= 1
            super().finish()

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen = Seen(self.path, dict(self.headers), body, time.monotonic(), self.client_address)
            answer = server.take(seen)
            server.on_request()
            try:
                self._give(answer)
            except (BrokenPipeError, ConnectionResetError):
                server.left.set()
                self.close_connection = True
            finally:
                server.given()

        def _give(self, answer: Answer) -> None:
            if answer is DROPPED:
                raise ConnectionResetError
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Transfer-Encoding", "chunked")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in answer.pieces:
                if isinstance(piece, bytes):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                else:
                    self._wait(None if piece == HANG else float(piece))
            if answer.cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.wfile.write(b"0\r\n\r\n")

        def _wait(self, seconds: float | None) -> None:
            readable, _, _ = select.select([self.connection], [], [], 30 if seconds is None else seconds)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError

    return Handler
