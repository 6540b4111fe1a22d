"""One request at a time, in a context of its own: what it computes depends on nothing but itself.

llama.cpp gives a token other bits in a batch, or where a prompt is cut elsewhere. So here a prompt is read from its
first token in pieces of a fixed length, and nothing else is in the context. Threads and queues are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Any

from llmkit.types import Chunk, Request, TokenLogprob
from llmkit_llama_cpp.choices import Decode, NewChoice, new_choice
from llmkit_llama_cpp.context import N_BATCH, Context, Logits
from llmkit_llama_cpp.sampling import ChoiceSampler

Emit = Callable[[Chunk], None]
_SEQUENCE = 0


class Alone:
    """Runs requests singly. One thread uses it.

    Args:
        make_context: makes the context, at the first request.
        decode: token ids to text.
        logprobs: the log-probabilities of the newest token of a sampler, where they are asked for.
        lock: held while the model runs, for others who run it.
    """

    def __init__(
        self,
        make_context: Callable[[], Context],
        decode: Decode,
        logprobs: Callable[[ChoiceSampler], tuple[TokenLogprob, ...] | None],
        lock: Lock,
    ) -> None:
        self._make_context, self._decode, self._logprobs, self._lock = make_context, decode, logprobs, lock
        self._context: Context | None = None
        self._adapter: Any = None

    def run(self, index: int, request: Request, emit: Emit, cancelled: Event) -> None:
        """Generate all choices of a request, one after another; ends early once cancelled."""
        prompt = request.prompt_ids or ()
        emit(Chunk(index, prompt_tokens=len(prompt)))
        first = self._read_prompt(prompt, cancelled)
        for choice in range(request.params.n):
            if choice and not self._opened().cut(_SEQUENCE, len(prompt)):
                first = self._read_prompt(prompt, cancelled)
            if first is not None:
                self._continue(index, first, new_choice(request, choice, self._decode), emit, cancelled)

    def use_adapter(self, handle: Any) -> None:
        """Compute with an adapter from now on, or without one."""
        self._adapter = handle
        if self._context is not None:
            self._context.use_adapter(handle)

    def _continue(self, index: int, logits: Logits, choice: NewChoice, emit: Emit, cancelled: Event) -> None:
        sampler, text = choice.sampler, choice.text
        while not cancelled.is_set():
            token_id = sampler.choose(logits, int(logits.argmax()))
            piece, logprobs = text.feed(token_id), self._logprobs(sampler)
            emit(Chunk(index, sampler.choice, piece, (token_id,), text.finish_reason, logprobs=logprobs))
            if text.finish_reason is not None:
                return
            logits = self._read([token_id], len(sampler.context) + len(sampler.chosen) - 1)

    def _read_prompt(self, prompt: Sequence[int], cancelled: Event) -> Logits | None:
        """The logits after the prompt, read from an empty context; None where nobody waits for them any more."""
        self._opened().clear()
        logits: Logits | None = None
        for start in range(0, len(prompt), N_BATCH):
            if cancelled.is_set():
                return None
            logits = self._read(prompt[start : start + N_BATCH], start)
        return None if logits is None else logits.copy()

    def _read(self, tokens: Sequence[int], start: int) -> Logits:
        """`(V,)` logits after the last of the tokens, valid until the next call."""
        n_tokens = len(tokens)
        wanted = [False] * (n_tokens - 1) + [True]
        with self._lock:
            return self._opened().read(tokens, range(start, start + n_tokens), [_SEQUENCE] * n_tokens, wanted)[0]

    def _opened(self) -> Context:
        if self._context is None:
            self._context = self._make_context()
            self._context.use_adapter(self._adapter)
        return self._context

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()
