"""The kit finds what is wrong: each backend here breaks one promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmkit.capabilities import Capabilities
from llmkit.params import SPECS
from llmkit.testing import BackendContract, ScriptedLLM
from llmkit.testing.effects import EXAMPLES, PROBES, Subject
from llmkit.types import Chunk, Request

PROMPTS = ("first", "second", "third")


def alternatives(prompt: str) -> list[str]:
    return [f"{prompt} one two three {n} five six seven eight nine ten" for n in ("four", "4", "IV")]


class Altered(ScriptedLLM):
    """A scripted model whose requests or chunks are changed on their way."""

    def __init__(
        self,
        request: Callable[[Request], Request] = lambda request: request,
        chunk: Callable[[Chunk], Chunk] = lambda chunk: chunk,
        **params: Any,
    ) -> None:
        super().__init__(alternatives, **params)
        self._request, self._chunk = request, chunk

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        return map(self._chunk, super()._generate([self._request(request) for request in requests]))


def without(*names: str) -> Altered:
    """A model that drops parameters which it declares."""
    return Altered(lambda request: replace(request, params=request.params.replace(**dict.fromkeys(names))))


def subject(llm: ScriptedLLM) -> Subject:
    return Subject(llm, PROMPTS, n_tokens=8, hot=2.0)


def test_every_parameter_has_a_probe_and_an_example() -> None:
    assert PROBES.keys() == EXAMPLES.keys() == SPECS.keys()
    for name, value in EXAMPLES.items():
        assert SPECS[name].validated(name, value) not in SPECS[name].neutral


SETTLED_BEFORE = {"max_length", "system_prompt", "role"}
"""Parameters that a request no longer needs when the backend sees it."""
CHECKED_ALWAYS = {"num_return_sequences"}
"""Dropping it fails each call: a choice is missing."""


@pytest.mark.filterwarnings("ignore::llmkit.errors.InertParameterWarning")
@pytest.mark.parametrize("name", sorted(ScriptedLLM.capabilities.params - SETTLED_BEFORE - CHECKED_ALWAYS))
def test_a_declared_parameter_that_is_dropped_is_found(name: str) -> None:
    assert PROBES[name](subject(Altered()))
    assert not PROBES[name](subject(without(name)))


def test_a_parameter_that_is_neither_declared_nor_refused_is_found() -> None:
    class Silent(ScriptedLLM):
        capabilities = Capabilities(params=ScriptedLLM.capabilities.params, streaming=True)

        def _prepare(self, request: Request) -> Any:
            return super()._prepare(replace(request, params=request.params.replace(top_k=None)))

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        BackendContract().test_a_parameter_changes_generation_or_is_refused(subject(Silent(alternatives)), "top_k")


BROKEN: dict[str, tuple[ScriptedLLM, str]] = {
    "a batch whose texts are mixed up": (
        Altered(chunk=lambda c: replace(c, text=c.text.upper()) if c.request else c),
        "test_a_batch_equals_single_calls",
    ),
    "a text that is stripped only where it is whole": (
        Altered(chunk=lambda c: replace(c, text=c.text + "!" if c.finish_reason == "stop" else c.text)),
        "test_stop_strings_end_a_text_wherever_its_tokens_break",
    ),
    "tokens that are not counted": (
        Altered(chunk=lambda c: replace(c, token_ids=c.token_ids * 2)),
        "test_usage_is_exact",
    ),
    "half a character": (
        Altered(chunk=lambda c: replace(c, text="\ud800")),
        "test_texts_are_whole_unicode",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_found(what: str) -> None:
    llm, test = BROKEN[what]
    arguments = (PROMPTS[0],) if test == "test_texts_are_whole_unicode" else ()
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        getattr(BackendContract(), test)(llm, *arguments)


def test_a_model_that_goes_on_after_it_was_closed_is_found() -> None:
    class Immortal(BackendContract):
        @classmethod
        def load(cls, **params: Any) -> ScriptedLLM:
            llm = ScriptedLLM(alternatives, **params)
            llm.close = lambda: None  # type: ignore[method-assign]
            return llm

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        Immortal().test_a_closed_model_refuses_calls_and_closes_again()


class Forgetful(ScriptedLLM):
    """A scripted model that reads the last word of a prompt alone."""

    def _encode(self, request: Request) -> list[int]:
        return super()._encode(replace(request, tools=()))[-1:]


def test_tools_that_do_not_reach_the_model_are_found() -> None:
    with pytest.raises(AssertionError, match="reads the same with them"):
        BackendContract().test_tools_reach_the_model_or_are_refused(subject(Forgetful(alternatives)))
    BackendContract().test_tools_reach_the_model_or_are_refused(subject(ScriptedLLM(alternatives)))


def test_a_prompt_that_is_cut_to_the_window_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        BackendContract().test_a_prompt_that_leaves_no_room_is_refused(Forgetful(alternatives, context_length=50))
    BackendContract().test_a_prompt_that_leaves_no_room_is_refused(ScriptedLLM(alternatives, context_length=50))


def test_a_queue_that_is_declared_to_have_an_end_and_has_none_is_found() -> None:
    class Endless(ScriptedLLM):
        capabilities = replace(ScriptedLLM.capabilities, bounded_queue=True)

    class EndlessContract(BackendContract):
        @classmethod
        def load(cls, max_waiting: int = 0, **params: Any) -> ScriptedLLM:
            return Endless(alternatives, **params)

    with pytest.raises(AssertionError):
        EndlessContract().test_a_full_queue_refuses_who_will_not_wait(Endless(alternatives))


def test_a_subclass_without_load_is_told_so() -> None:
    with pytest.raises(NotImplementedError, match="defines load"):
        BackendContract.load()
