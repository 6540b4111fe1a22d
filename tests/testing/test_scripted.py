"""The scripted model says what it was told to say, and counts every token of it."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import GenerationError, InvalidRequest, UnsupportedParameter
from llmkit.params import GenerationParams
from llmkit.testing import ScriptedLLM, characters, words
from llmkit.testing.scripted import EOS, token_id, token_text
from llmkit.types import Request


@given(st.text())
def test_tokens_join_to_the_text_and_ids_turn_back_into_tokens(text: str) -> None:
    for cut in (words, characters):
        assert "".join(cut(text)) == text
        assert [token_text(token_id(token)) for token in cut(text)] == cut(text)


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_tokens_have_different_ids(one: str, other: str) -> None:
    assert (token_id(one) == token_id(other)) == (one == other)
    assert token_id(one) != EOS


def test_words_keep_the_space_before_them() -> None:
    assert words("a  bc\n d.") == ["a", " ", " bc", "\n", " d."]


# --- answers --------------------------------------------------------------------------------------------------------


def test_one_answer_answers_everything() -> None:
    llm = ScriptedLLM("yes")
    assert (llm.run("a"), llm.run("b")) == ("yes", "yes")


def test_answers_are_looked_up_by_the_last_message() -> None:
    llm = ScriptedLLM({"a": "A", "b": "B"})
    assert llm.batch_run(["b", "a"]) == ["B", "A"]
    assert llm.chat("b", history="User: a\nAssistant: A") == "B"


def test_a_prompt_without_an_answer_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="no answer is scripted for 'c'"):
        ScriptedLLM({"a": "A"}).run("c")


def test_a_function_answers() -> None:
    assert ScriptedLLM(str.upper).run("loud") == "LOUD"


def test_greedy_decoding_takes_the_first_alternative() -> None:
    llm = ScriptedLLM(["first", "second"])
    assert {llm.run("x", seed=seed) for seed in range(20)} == {"first"}
    assert {llm.run("x", temperature=0, do_sample=True, seed=seed) for seed in range(20)} == {"first"}


def test_sampling_depends_on_seed_and_choice_alone() -> None:
    llm = ScriptedLLM(["a", "b", "c"], do_sample=True)
    alone = [llm.run("x", seed=seed) for seed in range(40)]
    assert llm.batch_run(["x"] * 40, seed=list(range(40))) == alone
    assert set(alone) == {"a", "b", "c"}
    assert len({choice.text for choice in llm.complete("x", seed=1, n=40).choices}) == 3


def test_a_higher_temperature_makes_later_alternatives_likelier() -> None:
    llm = ScriptedLLM(["first", "second"])

    def n_second(temperature: float) -> int:
        return llm.batch_run(["x"] * 200, seed=list(range(200)), temperature=temperature).count("second")

    assert n_second(0.1) < 5 < n_second(1.0) < n_second(100.0)


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_every_token_is_counted_with_the_one_that_ends_the_answer() -> None:
    completion = ScriptedLLM("one two three").complete("a question?")
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 4)
    assert completion.choices[0].token_ids == (*map(token_id, ["one", " two", " three"]), EOS)
    assert completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(("max_tokens", "text", "reason"), [(2, "one two", "length"), (3, "one two", "stop")])
def test_max_tokens_cuts_the_answer(max_tokens: int, text: str, reason: str) -> None:
    choice = ScriptedLLM("one two").complete("x", max_tokens=max_tokens).choices[0]
    assert (choice.text, choice.finish_reason) == (text, reason)


def test_a_stop_string_across_tokens_ends_the_answer_and_is_left_out() -> None:
    completion = ScriptedLLM("one two three").complete("x", stop_token="e t")
    assert (completion.text, completion.choices[0].finish_reason) == ("on", "stop")
    assert completion.usage.completion_tokens == 2


def test_the_beginning_of_a_stop_string_is_given_out_when_the_answer_ends_with_it() -> None:
    assert ScriptedLLM("one two", tokens=characters).run("x", stop_token="twos") == "one two"
    assert ScriptedLLM("one two", tokens=characters).run("x", stop_token="twos", max_tokens=6) == "one tw"


@given(
    answer=st.text(alphabet="ab \né😀", max_size=30),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), max_size=2),
    max_tokens=st.integers(1, 40),
    cut=st.sampled_from([words, characters]),
)
def test_the_answer_is_what_the_script_says_up_to_its_limits(
    answer: str, stops: list[str], max_tokens: int, cut: Any
) -> None:
    expected = "".join(cut(answer)[:max_tokens])
    ends = [expected.find(stop) + len(stop) for stop in stops if stop in expected]
    if ends:
        said = expected[: min(ends)]
        expected = said[: min(said.find(stop) for stop in stops if said.endswith(stop) and stop in said)]
    llm = ScriptedLLM(answer, tokens=cut)
    assert llm.run("x", stop_token=stops, max_tokens=max_tokens) == expected
    assert "".join(llm.stream("x", stop_token=stops, max_tokens=max_tokens)) == expected


def test_tokens_arrive_one_by_one_with_the_choices_in_turn() -> None:
    llm = ScriptedLLM("a b")
    params = GenerationParams(n=2, max_tokens=9)
    chunks = list(llm._generate([Request("x", params, prompt_ids=(1,)), Request("y", params, prompt_ids=(1, 2))]))
    assert [(c.request, c.choice, c.text) for c in chunks[:5]] == [
        (0, 0, "a"),
        (0, 1, "a"),
        (1, 0, "a"),
        (1, 1, "a"),
        (0, 0, " b"),
    ]
    assert [(c.request, c.prompt_tokens) for c in chunks if c.prompt_tokens] == [(0, 1), (1, 2)]


# --- trouble --------------------------------------------------------------------------------------------------------


def test_it_fails_where_it_is_told_to() -> None:
    pieces = ScriptedLLM("one two BOOM", fail_on="BOOM").stream("x")
    assert [next(pieces), next(pieces)] == ["one", " two"]
    with pytest.raises(GenerationError, match="BOOM"):
        next(pieces)


def test_each_token_takes_its_time() -> None:
    started = time.perf_counter()
    ScriptedLLM("one two", delay_s=0.02).run("x")
    assert time.perf_counter() - started >= 0.06


def test_it_refuses_what_it_does_not_honour() -> None:
    with pytest.raises(UnsupportedParameter, match="'top_k'"):
        ScriptedLLM().run("x", top_k=3)


def test_prepared_requests_can_be_looked_at() -> None:
    llm = ScriptedLLM(system_prompt="Be brief.")
    llm.run("hello")
    assert [message.content for message in llm.requests[0].prompt] == ["Be brief.", "hello"]


def test_equal_scripts_have_equal_fingerprints() -> None:
    assert ScriptedLLM("a").fingerprint == ScriptedLLM("a").fingerprint != ScriptedLLM("b").fingerprint
    assert ScriptedLLM(str.upper).fingerprint is None
