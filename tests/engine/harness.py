"""Driving an engine over the fake runner, with its books checked after every step."""

from collections.abc import Sequence

from llmkit.engine.engine import Engine
from llmkit.engine.sequence import EngineRequest, Event, Failure
from llmkit.errors import LLMKitError
from llmkit.testing.fake_runner import FakeRunner, FakeSampler, continuation
from llmkit.text import OutputText

NO_EOS: Sequence[int] = ()
SOME_EOS = range(60)  # of 1000 tokens, so that some texts end early


def decode(token_ids: Sequence[int]) -> str:
    return "".join(chr(0x4E00 + token_id) for token_id in token_ids)


def make_request(
    prompt_ids: Sequence[int],
    *,
    n: int = 1,
    max_tokens: int = 4,
    reproducible: bool = False,
    eos_ids: Sequence[int] = NO_EOS,
    may_wait: bool = True,
) -> EngineRequest:
    outputs = [OutputText(decode, eos_ids=eos_ids, max_tokens=max_tokens) for _ in range(n)]
    samplers = [FakeSampler(salt) for salt in range(n)]
    return EngineRequest(tuple(prompt_ids), samplers, outputs, reproducible, max_tokens, may_wait)


def alone(request: EngineRequest, eos_ids: Sequence[int] = NO_EOS) -> list[list[int]]:
    """The tokens of each choice, computed without an engine."""

    def is_last(generated: list[int]) -> bool:
        return len(generated) == request.max_tokens or generated[-1] in eos_ids

    return [continuation(request.prompt_ids, FakeSampler(salt), is_last) for salt in range(request.n_choices)]


class Driver:
    """An engine whose events are gathered and whose memory is audited."""

    def __init__(self, runner: FakeRunner | None = None, *, kv_budget_bytes: int = 1 << 30, **limits: object) -> None:
        self.runner = runner or FakeRunner()
        self.engine = Engine(self.runner, kv_budget_bytes=kv_budget_bytes, **limits)
        self.max_running = self.engine._scheduler.max_running
        self.tokens: dict[EngineRequest, list[list[int]]] = {}
        self.texts: dict[EngineRequest, list[str]] = {}
        self.open: dict[EngineRequest, int] = {}
        self.failed: dict[EngineRequest, LLMKitError] = {}
        self.cancelled: set[EngineRequest] = set()

    def add(self, *requests: EngineRequest) -> None:
        for request in requests:
            self.engine.add(request)
            self.tokens[request] = [[] for _ in request.samplers]
            self.texts[request] = ["" for _ in request.samplers]
            self.open[request] = request.n_choices

    def cancel(self, request: EngineRequest) -> None:
        self.engine.cancel(request)
        self.open.pop(request, None)
        self.cancelled.add(request)
        self.audit()

    def step(self) -> None:
        for event in self.engine.step():
            self._take(event)
        self.audit()

    def run(self, *requests: EngineRequest, max_steps: int = 100_000) -> None:
        self.add(*requests)
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work
        assert not self.open

    def audit(self) -> None:
        figures = self.engine.figures()
        assert figures.live_bytes + figures.cached_bytes == self.runner.allocated_bytes
        assert figures.promised_bytes >= 0
        assert figures.live_bytes + figures.cached_bytes + figures.promised_bytes <= figures.budget_bytes
        assert self.runner.peak_bytes <= figures.budget_bytes
        assert figures.running_sequences <= self.max_running
        assert len(self.runner.in_use) == figures.running_sequences + figures.cached_prefixes

    def close(self) -> None:
        """Close the engine; the runner itself checks that nothing is left."""
        self.engine.close()
        assert self.runner.is_closed
        assert self.runner.allocated_bytes == 0

    def _take(self, event: Event) -> None:
        request = event.request
        assert request in self.open, "an event after the end"
        if isinstance(event, Failure):
            self.failed[request] = event.error
            del self.open[request]
            return
        self.tokens[request][event.choice].append(event.token_id)
        self.texts[request][event.choice] += event.text
        if event.finish_reason is not None:
            self.open[request] -= 1
        if not self.open[request]:
            del self.open[request]
