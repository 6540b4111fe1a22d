"""What llmkit adds to a bare httpx call: the same server on loopback, the same answer of 64 events.

The bare side posts and reads the bytes of the answer, and looks into none of them; the other side reads events,
matches, counts, and hands the pieces over. The server is a process of its own (`python -m benchmarks.openai_overhead`).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

import llmkit
from benchmarks.measure import Row, interleaved, ratios, row
from llmkit import BackendLLM

N_EVENTS = 64
N_STREAMS = 64
N_ROUNDS, N_CALLS = 15, 20
N_STREAM_ROUNDS = 7
PACE_S = 0.005
LIMIT_S = 0.002
TEXT = "".join(f"word{n} " for n in range(N_EVENTS))


def openai_overhead() -> list[Row]:
    """Seconds that `run` adds to a bare call, and 64 streams at once, none of which may lose a piece."""
    with _server() as url:
        return [*_lone_calls(url), *_streams(url)]


def _lone_calls(url: str) -> list[Row]:
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with llmkit.load(f"{url}#fast") as llm, httpx.Client() as client:
        if llm.run("Hi") != TEXT:
            raise RuntimeError("the answer must come whole")

        def bare() -> None:
            for _ in range(N_CALLS):
                client.post(f"{url}/chat/completions", json=body).read()

        def run() -> None:
            for _ in range(N_CALLS):
                llm.run("Hi")

        seconds = interleaved({"bare": bare, "run": run}, N_ROUNDS)
    each = {name: [s / N_CALLS for s in values] for name, values in seconds.items()}
    added = [run - bare for run, bare in zip(each["run"], each["bare"], strict=True)]
    workload = f"openai, {N_EVENTS} events"
    return [
        row(workload, "bare httpx call", "s", each["bare"]),
        row(workload, "run adds", "s", added, LIMIT_S),
    ]


def _streams(url: str) -> list[Row]:
    with llmkit.load(f"{url}#paced") as llm:
        rounds = [asyncio.run(_one_round(url, llm)) for _ in range(1 + N_STREAM_ROUNDS)][1:]
    bare, ours = [r[0] for r in rounds], [r[1] for r in rounds]
    workload = f"openai, {N_STREAMS} streams at once"
    return [row(workload, "bare httpx streams", "s", bare), row(workload, "astream / bare", "x", ratios(ours, bare))]


async def _one_round(url: str, llm: BackendLLM) -> tuple[float, float]:
    """Seconds of the bare streams and of llmkit's, after a check that nothing was lost."""
    body = {"model": "paced", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    clock = asyncio.get_running_loop().time

    async def bare(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                pass

    async def ours() -> str:
        return "".join([piece async for piece in llm.astream("Hi")])

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=N_STREAMS)) as client:
        started = clock()
        await asyncio.gather(*(bare(client) for _ in range(N_STREAMS)))
        bare_s = clock() - started
    started = clock()
    texts = await asyncio.gather(*(ours() for _ in range(N_STREAMS)))
    if set(texts) != {TEXT}:
        raise RuntimeError("a stream lost something")
    return bare_s, clock() - started


# --- the server -----------------------------------------------------------------------------------------------------


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.openai_overhead"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


async def _serve() -> None:
    server = await asyncio.start_server(_answer_all, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after another."""
    while head := await _head(reader):
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        pace_s = PACE_S if b'"paced"' in await reader.readexactly(length) else 0
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in _EVENTS:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            if pace_s:
                await asyncio.sleep(pace_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


_EVENTS = [*(_event({"content": f"word{n} "}) for n in range(N_EVENTS)), _event({}, "stop"), b"data: [DONE]\n\n"]


if __name__ == "__main__":
    asyncio.run(_serve())
