"""The contract on the smallest possible subclass: it defines `run` and nothing else."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.base import CREATIVE, BaseLLM
from llmkit.errors import CheckpointError, InvalidRequest, ModelClosed, UnsupportedFeature
from llmkit.types import Message


class Reverser(BaseLLM):
    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        return (task or "")[::-1]


class Recorder(BaseLLM):
    """Keeps what reaches `run`."""

    def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
        self.calls = [*getattr(self, "calls", []), (task, args, kwargs)]
        return f"answer to {task}"


CONSTRUCTOR = {
    "model_name": "m",
    "max_tokens": 7,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "system_prompt": "be brief",
    "beam_width": 2,
    "num_return_sequences": 2,
    "seed": 5,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "stop_token": "x",
    "length_penalty": 2.0,
    "role": "user",
    "max_length": 99,
    "do_sample": True,
    "early_stopping": True,
    "num_beams": 2,
    "repition_penalty": 1.5,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "device": "cpu",
}

SETTERS = (
    ("temperature", 0.25),
    ("max_tokens", 9),
    ("max_length", 50),
    ("model_name", "other"),
    ("frequency_penalty", 1.0),
    ("presence_penalty", 1.0),
    ("stop_token", ["a", "b"]),
    ("length_penalty", 0.5),
    ("role", "assistant"),
    ("top_k", 5),
    ("top_p", 0.25),
    ("num_beams", 3),
    ("do_sample", False),
    ("early_stopping", "never"),
    ("seed", 8),
    ("device", "cuda"),
)


# --- the shape of the class -----------------------------------------------------------------------------------------


def test_the_class_itself_is_abstract_and_points_at_load() -> None:
    with pytest.raises(TypeError, match=r"BaseLLM is abstract: define run\(\), or get a ready model with llmkit.load"):
        BaseLLM(model_name="gpt2")  # type: ignore[abstract]


def test_a_subclass_without_run_is_abstract_too() -> None:
    class Nothing(BaseLLM):
        pass

    with pytest.raises(TypeError, match="Nothing is abstract"):
        Nothing()  # type: ignore[abstract]


def test_a_subclass_inherits_run() -> None:
    class Quiet(Reverser):
        pass

    assert Quiet().run("abc") == "cba"


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_a_constructor_parameter_is_an_attribute_of_the_same_name(name: str) -> None:
    assert getattr(Reverser(), name) is None
    assert getattr(Reverser(**{name: CONSTRUCTOR[name]}), name) == CONSTRUCTOR[name]


def test_all_constructor_parameters_may_be_given_at_once_in_their_order() -> None:
    by_position, by_name = Reverser(*CONSTRUCTOR.values()), Reverser(**CONSTRUCTOR)
    assert by_position.params == by_name.params
    assert {name: getattr(by_position, name) for name in CONSTRUCTOR} == CONSTRUCTOR


@pytest.mark.parametrize(("name", "value"), SETTERS, ids=[name for name, _ in SETTERS])
def test_each_of_the_sixteen_setters_sets_its_attribute_and_no_other(name: str, value: Any) -> None:
    llm = Reverser(**{key: value for key, value in CONSTRUCTOR.items() if key != "beam_width"})
    before = {key: getattr(llm, key) for key in CONSTRUCTOR if key not in (name, "beam_width")}
    getattr(llm, f"set_{name}")(value)
    expected = tuple(value) if isinstance(value, list) else value
    assert getattr(llm, name) == expected
    assert {key: getattr(llm, key) for key in before} == before


def test_two_spellings_are_one_attribute() -> None:
    llm = Reverser(num_beams=3, repition_penalty=1.5)
    llm.beam_width = 4
    llm.repetition_penalty = 1.25
    assert (llm.num_beams, llm.repition_penalty) == (4, 1.25)


def test_the_representation_names_what_is_set() -> None:
    assert repr(Reverser("m", temperature=0.5)) == "Reverser('m', temperature=0.5)"


# --- calls ----------------------------------------------------------------------------------------------------------


def test_calling_the_object_is_run() -> None:
    assert Reverser()("abc") == Reverser().run("abc") == "cba"


def test_arguments_reach_run_from_every_call() -> None:
    llm, seen = Recorder(), [("t", (1,), {"k": 2})]
    llm("t", 1, k=2)
    llm.batch_run(["t"], 1, k=2)
    asyncio.run(llm.arun("t", 1, k=2))
    asyncio.run(llm.abatch_run(["t"], 1, k=2))
    assert llm.calls == seen * 4
    llm.calls = []
    llm.complete("t", k=2)
    list(llm.stream("t", k=2))
    llm.chat("t", k=2)
    assert llm.calls == [("t", (), {"k": 2})] * 3


def test_batches_keep_the_order_of_their_tasks() -> None:
    tasks = ["abc", "de", "f"]
    assert Reverser().batch_run(tasks) == asyncio.run(Reverser().abatch_run(tasks)) == ["cba", "ed", "f"]


def test_a_batch_takes_one_value_a_task() -> None:
    llm = Recorder()
    llm.batch_run(["a", "b"], seed=[1, 2])
    assert [kwargs for _, _, kwargs in llm.calls] == [{"seed": 1}, {"seed": 2}]


@pytest.mark.parametrize("method", ["batch_run", "throughput"])
def test_a_string_is_no_batch(method: str) -> None:
    with pytest.raises(InvalidRequest, match="tasks must be a list, got str"):
        getattr(Reverser(), method)("abc")


def test_a_stream_joins_to_what_run_returns() -> None:
    async def collected() -> str:
        return "".join([piece async for piece in Reverser().astream("abc")])

    assert "".join(Reverser().stream("abc")) == asyncio.run(collected()) == "cba"


def test_a_completion_holds_the_text_and_invents_no_counts() -> None:
    completion = Reverser(top_k=3).complete([{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}])
    assert completion.text == "dc\nba"
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (None, None)
    assert completion.params.top_k == 3


def test_arun_leaves_the_event_loop_free() -> None:
    """`run` waits for something that only the event loop can do: it would hang if it ran inside the loop."""

    class Waiting(BaseLLM):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            assert free.wait(60)
            return "done"

    free = threading.Event()

    async def main() -> list[str]:
        calls = asyncio.gather(Waiting().arun("a"), Waiting().abatch_run(["b", "c"]))
        await asyncio.sleep(0)
        free.set()
        first, rest = await calls
        return [first, *rest]

    assert asyncio.run(main()) == ["done"] * 3


def test_an_exception_of_the_model_passes_through_and_is_not_counted() -> None:
    class Broken(BaseLLM):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            raise ZeroDivisionError(task)

    llm = Broken()
    for call in (llm.run, llm.chat, llm.complete, lambda task: asyncio.run(llm.arun(task))):
        with pytest.raises(ZeroDivisionError):
            call("x")
    assert llm.metrics().n_generations == 0
    assert llm.history == []


# --- conversation ---------------------------------------------------------------------------------------------------


def test_chat_sends_what_was_said_before_oldest_first_and_keeps_both_sides() -> None:
    llm = Recorder()
    llm.chat("one")
    llm.chat("two")
    assert [task for task, _, _ in llm.calls] == ["one", "one\nanswer to one\ntwo"]
    assert llm.history[:2] == [Message("user", "one"), Message("assistant", "answer to one")]
    assert len(llm.history) == 4
    llm.clear_history()
    assert llm.history == []


@pytest.mark.parametrize(
    "history",
    ["User: one\nAssistant: yes", [{"role": "user", "content": "one"}, Message("assistant", "yes")]],
)
def test_a_history_that_is_passed_is_used_and_nothing_is_kept(history: Any) -> None:
    llm = Recorder()
    llm.history = [Message("user", "older")]
    assert llm.chat("two", history) == "answer to one\nyes\ntwo"
    assert llm.history == [Message("user", "older")]


def test_an_empty_list_is_a_history_too() -> None:
    llm = Recorder()
    llm.history = [Message("user", "older")]
    assert llm.chat("two", []) == "answer to two"
    assert llm.history == [Message("user", "older")]


def test_an_empty_turn_is_refused_and_leaves_the_history() -> None:
    llm = Reverser()
    for history in ("", [Message("user", "x")]):
        with pytest.raises(InvalidRequest, match="the task must be a non-empty string"):
            llm.chat("", history)
    assert llm.history == []


def test_chats_at_the_same_time_take_turns() -> None:
    llm = Recorder()
    threads = [threading.Thread(target=llm.chat, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(llm.history) == 16
    for question, answer in zip(llm.history[::2], llm.history[1::2], strict=True):
        assert (question.role, answer.role) == ("user", "assistant")
        assert answer.content.endswith(f"\n{question.content}") or answer.content == f"answer to {question.content}"


def test_a_model_that_plays_the_user_answers_as_the_user() -> None:
    llm = Reverser(role="user")
    llm.chat("how can I help?")
    assert [message.role for message in llm.history] == ["assistant", "user"]


def test_a_summary_of_a_long_text_runs_passage_by_passage() -> None:
    class Counter(BaseLLM):
        n_calls = 0

        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            Counter.n_calls += 1
            return f"part {Counter.n_calls}."

    assert Counter().generate_summary("A sentence of six words here. " * 400).startswith("part")
    assert Counter.n_calls > 2


def test_a_model_that_plays_the_user_answers_a_passed_history_as_the_user() -> None:
    class Sides(Reverser):
        def _reply(self, messages: tuple[Message, ...], overrides: Any) -> str:
            return " ".join(message.role for message in messages)

    past = [Message("assistant", "hi"), Message("user", "hello")]
    assert Sides(role="user").chat("how can I help?", past) == "assistant user assistant"
    assert Sides().chat("my key", [*past, Message("assistant", "how can I help?")]).endswith("assistant user")


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_before_any_run_are_zero_and_raise_nothing() -> None:
    llm = Reverser()
    assert llm._tokens_per_second() == llm.get_generation_time() == llm.throughput() == llm.generation_latency() == 0.0
    assert llm.time_to_first_token() is None


def test_a_run_is_timed_and_counted() -> None:
    llm = Reverser()
    llm.run("one two three!")
    assert llm.get_generation_time() > 0
    assert llm._tokens_per_second() > 0
    assert (llm.metrics().n_generations, llm.metrics().total_completion_tokens) == (
        1,
        llm._num_tokens("eno owt !eerht"),
    )
    assert llm._time_for_generation("x") > 0
    assert llm.generation_latency("x") > 0
    assert llm.throughput(["a b", "c d"]) > 0
    assert llm.metrics().n_generations == 5


def test_words_and_signs_are_counted_where_there_is_no_tokenizer() -> None:
    assert [Reverser()._num_tokens(text) for text in ("", "one", "one, two!")] == [0, 1, 4]


def test_a_run_that_runs_itself_is_recorded_once() -> None:
    class Deep(BaseLLM):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            return self.run(task[1:]) + task[0] if task else ""

    class Deeper(Deep):
        def run(self, task: str | None = None, *args: Any, **kwargs: Any) -> str:
            return super().run(task, *args, **kwargs)

    for llm in (Deep(), Deeper()):
        assert llm.run("abc") == "cba"
        assert llm.metrics().n_generations == 1


def test_runs_in_several_threads_are_all_recorded() -> None:
    llm, barrier = Reverser(), threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(50):
            llm.run("abc")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert llm.metrics().n_generations == 200


def test_resource_utilization_is_measured_and_printable() -> None:
    usage = Reverser().track_resource_utilization()
    assert usage.process_rss_bytes > 0
    assert str(usage)


# --- log, checkpoints, modes ----------------------------------------------------------------------------------------


def test_two_objects_log_to_two_files(tmp_path: Path) -> None:
    one, two = Reverser(), Reverser()
    one.enable_logging(str(tmp_path / "one.log"))
    two.enable_logging(str(tmp_path / "two.log"))
    one.log_event("first {braces}")
    two.log_event("second")
    assert [(tmp_path / name).read_text().count("first {braces}") for name in ("one.log", "two.log")] == [1, 0]
    assert [(tmp_path / name).read_text().count("second") for name in ("one.log", "two.log")] == [0, 1]
    one.close()
    two.close()


def test_a_checkpoint_restores_parameters_history_and_figures(tmp_path: Path) -> None:
    llm = Reverser(**CONSTRUCTOR)
    llm.chat("hello")
    llm.toggle_creative_mode(True)
    file = llm.save_checkpoint(tmp_path / "saved")
    for path in (file, tmp_path / "saved"):
        fresh = Reverser(device="cpu")
        fresh.load_checkpoint(path)
        assert (fresh.params, fresh.history, fresh.model_name) == (llm.params, llm.history, "m")
        assert fresh.metrics() == llm.metrics()
        fresh.toggle_creative_mode(False)
        assert fresh.params == Reverser(**CONSTRUCTOR).params


@pytest.mark.parametrize(
    "changed",
    [{"params": {"top_p": 7}}, {"params": {"no_such": 1}}, {"history": [{"role": "nobody"}]}, {"metrics": {}}, None],
)
def test_a_checkpoint_of_another_kind_is_refused_and_changes_nothing(tmp_path: Path, changed: Any) -> None:
    from llmkit import checkpoint

    llm = Reverser("m", top_k=3)
    llm.chat("hello")
    before = (llm.params, llm.history, llm.model_name, llm.metrics())
    state = {"model_name": "m", "params": {}, "history": [], "metrics": Reverser()._metrics.to_state()}
    path = checkpoint.save(tmp_path, {} if changed is None else {**state, **changed})
    with pytest.raises(CheckpointError):
        llm.load_checkpoint(path)
    assert (llm.params, llm.history, llm.model_name, llm.metrics()) == before


def test_a_checkpoint_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    text = Reverser("m", top_k=3).save_checkpoint(tmp_path).read_text()
    assert json.loads(text)["state"]["params"] == {"top_k": 3}


def test_weights_are_refused_by_a_model_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="Reverser has no weights to save"):
        Reverser().save_checkpoint(tmp_path, include_weights=True)
    assert not (tmp_path / "checkpoint.json").exists()


def test_creative_mode_swaps_a_preset_in_and_restores_what_stood_before() -> None:
    llm = Reverser(temperature=0.3, top_k=7)
    before = llm.params
    llm.toggle_creative_mode(True)
    llm.toggle_creative_mode(True)
    assert {name: getattr(llm, name) for name in CREATIVE} == dict(CREATIVE)
    assert llm.top_k == 7
    llm.toggle_creative_mode(False)
    assert llm.params == before
    llm.toggle_creative_mode(False)
    assert llm.params == before


# --- life -----------------------------------------------------------------------------------------------------------


def test_calls_after_close_are_refused_by_name(tmp_path: Path) -> None:
    with Reverser("m") as llm:
        assert llm.run("ab") == "ba"
    llm.close()
    llm.detach()
    calls = [
        lambda: llm.run("x"),
        lambda: llm("x"),
        lambda: llm.chat("x"),
        lambda: llm.complete("x"),
        lambda: llm.batch_run(["x"]),
        lambda: list(llm.stream("x")),
        lambda: asyncio.run(llm.arun("x")),
        lambda: llm.save_checkpoint(tmp_path),
        lambda: llm.load_checkpoint(tmp_path),
    ]
    for call in calls:
        with pytest.raises(ModelClosed, match="the model 'm' is closed"):
            call()


@pytest.mark.parametrize("name", ["run", "arun", "batch_run", "abatch_run", "__call__"])
def test_positional_and_keyword_arguments_stand_in_the_signatures(name: str) -> None:
    kinds = [p.kind for p in inspect.signature(getattr(BaseLLM, name)).parameters.values()]
    passed_on = [kind for kind in kinds if kind is not inspect.Parameter.KEYWORD_ONLY]
    assert passed_on[-2:] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


@pytest.mark.parametrize(
    "duplicate",
    [pickle.dumps, copy.deepcopy, copy.copy, lambda llm: pickle.dumps(llm.run), lambda llm: pickle.dumps(llm, 0)],
    ids=["pickle", "deepcopy", "copy", "pickle a method", "pickle by protocol 0"],
)
def test_a_model_is_neither_pickled_nor_copied(duplicate: Callable[[BaseLLM], object]) -> None:
    with pytest.raises(TypeError, match=r"a Reverser belongs to the process that loaded it .* from its name, 'm'"):
        duplicate(Reverser("m"))


class Portable(Reverser):
    """Knows how to be made again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model_name,)


def test_a_subclass_may_say_how_it_is_pickled() -> None:
    assert copy.deepcopy(Portable("m")).run("ab") == "ba"
