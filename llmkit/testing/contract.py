"""BackendContract: what every backend must do, as tests that a backend's author inherits.

It tests what a caller gets, never how: each declared parameter changes generation, each other one is refused; calls of
every kind agree; what is left or closed is free. It needs pytest, and knows no backend.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, ClassVar

import pytest

from llmkit.backend import BackendLLM
from llmkit.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelClosed,
    ParameterError,
    QueueFull,
    UnknownParameter,
    UnsupportedFeature,
    UnsupportedParameter,
)
from llmkit.params import SPECS, GenerationParams
from llmkit.structured import KINDS
from llmkit.testing.effects import EXAMPLES, PROBES, Subject
from llmkit.types import Request

UNICODE = ("Grüße aus Köln", "日本の首都は", "مرحبا بالعالم", "👩‍👩‍👧 family", "e\u0301te\u0301", "tab\tand\nline")
CONSTRAINTS: dict[str, tuple[str, Any]] = {
    "schema": (
        "Is snow white? Answer in JSON.",
        {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    ),
    "regex": ("Spell aab.", "[ab]{3}"),
    "choice": ("Red or green?", ["red", "green"]),
    "grammar": ("Yes or no?", 'start: "yes" | "no"'),
}
"""What is asked under each kind of constraint, and the constraint."""


@pytest.mark.filterwarnings("ignore::llmkit.errors.InertParameterWarning")
class BackendContract:
    """What every backend must do. Subclass it, define the class method `load`, and pytest runs the rest.

    One model is loaded for all tests and closed after them; a few tests load one of their own.

    Attributes:
        prompts: what the model is asked; it should say several tokens to each, not the same to all.
        n_tokens: tokens of a text; enough that parameters can show.
        hot: a temperature at which texts differ between seeds.
    """

    prompts: ClassVar[Sequence[str]] = ("What is the capital of France?", "Tell me a joke.", "Who are you?")
    n_tokens: ClassVar[int] = 12
    hot: ClassVar[float] = 2.0

    @classmethod
    def load(cls, **params: Any) -> BackendLLM:
        """A model of the backend, ready to run; each call gives another object."""
        raise NotImplementedError("a subclass of BackendContract defines load()")

    @pytest.fixture(scope="class")
    @classmethod
    def llm(cls) -> Generator[BackendLLM]:
        """The model that the tests share."""
        with closing(cls.load()) as llm:
            yield llm

    @pytest.fixture
    def subject(self, llm: BackendLLM) -> Subject:
        """The model with the prompts that it is asked."""
        return Subject(llm, self.prompts, self.n_tokens, self.hot)

    def settings(self, llm: BackendLLM) -> list[dict[str, Any]]:
        """The ways of generating that must agree however they are called: greedy, and seeded where that is promised."""
        declared = llm.capabilities.params
        ways: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": self.hot, "seed": 7}]
        ways = [{name: value for name, value in way.items() if name in declared} for way in ways]
        return ways if llm.capabilities.reproducible != "no" else ways[:1]

    # --- parameters -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", SPECS)
    def test_a_parameter_changes_generation_or_is_refused(self, subject: Subject, name: str) -> None:
        """What is declared has its effect; what is not raises before anything runs."""
        llm = subject.llm
        if name in llm.capabilities.params:
            assert PROBES[name](subject), f"{name} is declared, and no effect of it was found"
            return
        with pytest.raises(UnsupportedParameter) as caught:
            llm.run(self.prompts[0], **{name: EXAMPLES[name]})
        assert caught.value.name == name

    def test_an_attribute_and_an_override_mean_the_same(self, llm: BackendLLM) -> None:
        """A parameter on the object applies to every call, and an override to its own alone."""
        expected = llm.complete(self.prompts[0], max_tokens=2)
        before, llm.max_tokens = llm.max_tokens, 2
        try:
            assert llm.complete(self.prompts[0]).choices == expected.choices
            assert llm.complete(self.prompts[0], max_tokens=1).choices != expected.choices
            assert llm.max_tokens == 2
        finally:
            llm.max_tokens = before

    def test_bad_values_and_unknown_names_are_refused_and_change_nothing(self, llm: BackendLLM) -> None:
        """The message gives the rule and the value; an unknown name gives the nearest."""
        before = llm.params
        with pytest.raises(ParameterError, match=r"max_tokens must be .*got 0"):
            llm.max_tokens = 0
        with pytest.raises(ParameterError, match=r"max_tokens must be .*got -1"):
            llm.run(self.prompts[0], max_tokens=-1)
        with pytest.raises(UnknownParameter, match="max_tokens"):
            llm.run(self.prompts[0], max_token=1)
        assert llm.params == before

    @pytest.mark.parametrize("empty", ["", [], None])
    def test_an_empty_task_is_refused(self, llm: BackendLLM, empty: Any) -> None:
        """There is nothing to answer."""
        with pytest.raises(InvalidRequest):
            llm.complete(empty)

    # --- ways of calling --------------------------------------------------------------------------------------------

    def test_a_batch_equals_single_calls(self, llm: BackendLLM) -> None:
        """Neighbours change nothing, and order is kept."""
        for settings in self.settings(llm):
            way: dict[str, Any] = {**settings, "max_tokens": self.n_tokens}
            assert llm.batch_run([*self.prompts], **way) == [llm.run(prompt, **way) for prompt in self.prompts]

    def test_requests_of_a_batch_keep_their_own_parameters(self, llm: BackendLLM) -> None:
        """Each has its own length here."""
        limits = range(1, len(self.prompts) + 1)
        requests = [Request(p, GenerationParams(max_tokens=n)) for p, n in zip(self.prompts, limits, strict=True)]
        alone = [llm.complete_batch([request])[0] for request in requests]
        for together, one in zip(llm.complete_batch(requests), alone, strict=True):
            assert together.usage == one.usage
            assert together.choices[0].finish_reason == one.choices[0].finish_reason

    def test_an_empty_batch_gives_an_empty_list(self, llm: BackendLLM) -> None:
        """Nothing in, nothing out."""
        assert llm.batch_run([]) == []

    def test_a_stream_joins_to_what_run_returns(self, llm: BackendLLM) -> None:
        """For every way of generating, Unicode and stop strings included."""
        for way in self.settings(llm):
            way = {**way, "max_tokens": self.n_tokens}
            for prompt in (*self.prompts, *UNICODE):
                assert "".join(llm.stream(prompt, **way)) == llm.run(prompt, **way)

    def test_async_calls_equal_the_others(self, llm: BackendLLM) -> None:
        """`arun`, `abatch_run` and `astream`, many at once."""
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}

        async def calls() -> tuple[list[str], list[str], str]:
            singly = await asyncio.gather(*(llm.arun(prompt, **way) for prompt in self.prompts))
            together = await llm.abatch_run([*self.prompts], **way)
            return singly, together, "".join([piece async for piece in llm.astream(self.prompts[0], **way)])

        expected = [llm.run(prompt, **way) for prompt in self.prompts]
        assert asyncio.run(calls()) == (expected, expected, expected[0])

    def test_threads_get_what_they_asked_for(self, llm: BackendLLM) -> None:
        """Eight at once, each with its own prompts."""
        way: dict[str, Any] = {**self.settings(llm)[-1], "max_tokens": self.n_tokens}
        asked: list[str] = [*self.prompts] * 8
        expected = {prompt: llm.run(prompt, **way) for prompt in self.prompts}
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(llm.run, prompt, **way) for prompt in asked]
            assert [call.result() for call in calls] == [expected[prompt] for prompt in asked]

    def test_the_event_loop_goes_on_while_a_call_runs(self, llm: BackendLLM) -> None:
        """Another task takes its turns."""

        async def turns() -> int:
            call, n_turns = asyncio.create_task(llm.arun(self.prompts[0], max_tokens=self.n_tokens)), 0
            while not call.done():
                await asyncio.sleep(0.001)
                n_turns += 1
            await call
            return n_turns

        assert asyncio.run(turns()) > 0

    def test_a_conversation_is_kept(self, llm: BackendLLM) -> None:
        """Both sides of a turn, and neither of one that fails."""
        llm.clear_history()
        answer = llm.chat(self.prompts[0], max_tokens=self.n_tokens)
        with pytest.raises(ParameterError):
            llm.chat(self.prompts[1], max_tokens=0)
        try:
            assert [(m.role, m.content) for m in llm.history] == [("user", self.prompts[0]), ("assistant", answer)]
        finally:
            llm.clear_history()

    # --- texts and counts -------------------------------------------------------------------------------------------

    def test_stop_strings_end_a_text_wherever_its_tokens_break(self, llm: BackendLLM) -> None:
        """Every stretch of three characters of the text in turn; it is left out, and never streamed in part."""
        if "stop_token" not in llm.capabilities.params:
            pytest.skip("stop strings are not declared")
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}
        text = max((llm.run(prompt, **way) for prompt in self.prompts), key=len)
        prompt = next(prompt for prompt in self.prompts if llm.run(prompt, **way) == text)
        for at in range(max(1, len(text) - 3)):
            stop = text[at : at + 3]
            expected = text[: text.index(stop)]
            completion = llm.complete(prompt, stop_token=[stop, "\x00never"], **way)
            assert (completion.text, completion.choices[0].finish_reason) == (expected, "stop")
            assert "".join(llm.stream(prompt, stop_token=stop, **way)) == expected

    @pytest.mark.parametrize("prompt", UNICODE)
    def test_texts_are_whole_unicode(self, llm: BackendLLM, prompt: str) -> None:
        """Whatever is asked, what comes can be encoded, and does not depend on the way of calling."""
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}
        text = llm.run(prompt, **way)
        assert text.encode().decode() == text
        assert llm.batch_run([prompt, self.prompts[0]], **way)[0] == text

    def test_usage_is_exact(self, llm: BackendLLM) -> None:
        """The same by every way, equal to the tokens that are reported, and None rather than a guess."""
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}
        alone = [llm.complete(prompt, **way) for prompt in self.prompts]
        requests = [Request(prompt, GenerationParams(**way)) for prompt in self.prompts]
        for completion, batched in zip(alone, llm.complete_batch(requests), strict=True):
            assert completion.usage == batched.usage
            n_tokens = completion.usage.completion_tokens
            if completion.choices[0].token_ids:
                assert n_tokens == sum(len(choice.token_ids) for choice in completion.choices)
            if n_tokens is not None:
                assert 0 < n_tokens <= self.n_tokens
                is_cut = completion.choices[0].finish_reason == "length"
                assert not is_cut or n_tokens == self.n_tokens

    def test_choices_share_one_prompt_and_sum_their_tokens(self, llm: BackendLLM) -> None:
        """`n` choices count the prompt once."""
        if "num_return_sequences" not in llm.capabilities.params:
            pytest.skip("several choices are not declared")
        way: dict[str, Any] = {**self.settings(llm)[-1], "max_tokens": self.n_tokens}
        one, three = (llm.complete(self.prompts[0], n=n, **way) for n in (1, 3))
        assert one.usage.prompt_tokens == three.usage.prompt_tokens
        if three.choices[0].token_ids:
            assert three.usage.completion_tokens == sum(len(choice.token_ids) for choice in three.choices)

    def test_a_seed_repeats_and_an_unseeded_text_can_be_replayed(self, llm: BackendLLM) -> None:
        """The seed that was drawn is reported; two unseeded texts draw two."""
        if "seed" not in llm.capabilities.params or llm.capabilities.reproducible == "no":
            pytest.skip("seeded texts are not promised")
        way: dict[str, Any] = {"temperature": self.hot, "max_tokens": self.n_tokens}
        drawn, other = (llm.complete(self.prompts[0], **way) for _ in range(2))
        assert drawn.params.seed is not None
        assert drawn.params.seed != other.params.seed
        again = [llm.complete(self.prompts[0], seed=drawn.params.seed, **way) for _ in range(2)]
        assert again[0].choices == again[1].choices
        assert llm.run(self.prompts[0], seed=0, **way) == llm.run(self.prompts[0], seed=0, **way)

    def test_a_fingerprint_says_what_equal_bits_depend_on(self, llm: BackendLLM) -> None:
        """Where something is promised there is one, and it stays."""
        if llm.capabilities.reproducible != "no":
            assert llm.fingerprint
            assert llm.fingerprint == llm.fingerprint

    # --- features ---------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_constraint_is_kept_or_refused(self, llm: BackendLLM, kind: str) -> None:
        """A declared kind gives texts that parse; another is refused before anything runs."""
        prompt, constraint = CONSTRAINTS[kind]
        if kind not in llm.capabilities.structured:
            with pytest.raises(UnsupportedFeature):
                llm.run(prompt, **{kind: constraint})
            return
        for way in self.settings(llm):
            assert llm.complete(prompt, max_tokens=64, **way, **{kind: constraint}).parsed is not None

    def test_tools_reach_the_model_or_are_refused(self, subject: Subject) -> None:
        """The model reads another prompt with them, unless the backend says that it has no place for them."""

        def weather(city: str) -> str:
            """The weather of a city."""
            return city

        if not subject.llm.capabilities.tools:
            with pytest.raises(UnsupportedFeature):
                subject.llm.run(self.prompts[0], tools=[weather])
            return
        try:
            shown = subject.read(self.prompts[0], tools=[weather])
        except UnsupportedFeature as error:
            pytest.skip(f"this model cannot be shown tools: {error}")
        assert shown != subject.read(self.prompts[0]), "tools are declared, and the model reads the same with them"

    def test_a_prompt_that_leaves_no_room_is_refused(self, llm: BackendLLM) -> None:
        """Before anything runs, with the numbers; the next call is as good as any."""
        limit = llm.context_length
        if limit is None:
            pytest.skip("how much fits is not known before a call")
        with pytest.raises(ContextLengthExceeded) as caught:
            llm.run("word " * 2 * limit)
        assert caught.value.limit == limit <= caught.value.prompt_tokens
        assert llm.complete(self.prompts[0], max_tokens=1).choices[0].finish_reason in ("stop", "length")

    def test_a_full_queue_refuses_who_will_not_wait(self, llm: BackendLLM) -> None:
        """With one place to wait at, some of many threads are refused; all others get what they asked for."""
        if not llm.capabilities.bounded_queue:
            with pytest.raises(UnsupportedFeature):
                llm.run(self.prompts[0], when_full="raise")
            return
        way: dict[str, Any] = {**self.settings(llm)[-1], "max_tokens": self.n_tokens}
        expected = llm.run(self.prompts[0], **way)
        with closing(self.load(max_waiting=1)) as narrow:
            with ThreadPoolExecutor(16) as pool:
                calls = [pool.submit(narrow.run, self.prompts[0], when_full="raise", **way) for _ in range(64)]
            failures = [call.exception() for call in calls]
            assert {type(failure) for failure in failures} == {QueueFull, type(None)}
            assert {call.result() for call in calls if call.exception() is None} == {expected}
            assert narrow.run(self.prompts[0], when_full="raise", **way) == expected

    # --- life -------------------------------------------------------------------------------------------------------

    def test_a_stream_that_is_left_frees_its_place(self, llm: BackendLLM) -> None:
        """Closed or dropped in the middle, again and again; the next call is as good as the first."""
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}
        expected = llm.run(self.prompts[0], **way)
        for _ in range(20):
            pieces = iter(llm.stream(self.prompts[0], **way))
            next(pieces, "")
            del pieces
        gc.collect()
        assert llm.run(self.prompts[0], **way) == expected

    def test_a_task_that_is_cancelled_frees_its_place(self, llm: BackendLLM) -> None:
        """Cancelled or out of time; the next call is as good as the first."""
        way: dict[str, Any] = {**self.settings(llm)[0], "max_tokens": self.n_tokens}
        expected = llm.run(self.prompts[0], **way)

        async def cancelled() -> str:
            tasks = [asyncio.create_task(llm.arun(prompt, **way)) for prompt in [*self.prompts] * 3]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return await llm.arun(self.prompts[0], **way)

        assert asyncio.run(cancelled()) == expected

    def test_a_closed_model_refuses_calls_and_closes_again(self) -> None:
        """However it is called; leaving a `with` block closes, too."""
        with self.load() as llm:
            llm.run(self.prompts[0], max_tokens=1)
        llm.close()
        with pytest.raises(ModelClosed):
            llm.run(self.prompts[0])
        with pytest.raises(ModelClosed):
            list(llm.stream(self.prompts[0]))
        with pytest.raises(ModelClosed):
            asyncio.run(llm.arun(self.prompts[0]))

    def test_nothing_is_printed(self, llm: BackendLLM, capfd: pytest.CaptureFixture[str]) -> None:
        """A library says what it has to say by return values, exceptions and warnings."""
        llm.run(self.prompts[0], max_tokens=2)
        assert capfd.readouterr() == ("", "")
