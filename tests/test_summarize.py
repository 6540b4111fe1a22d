from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import GenerationError, InvalidRequest
from llmkit.summarize import split_passages, summarize


def count_words(text: str) -> int:
    return len(text.split())


def count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def first_words(n: int, prompts: list[str]) -> list[str]:
    return [" ".join(prompt.split()[:n]) for prompt in prompts]


def squeeze(text: str) -> str:
    return "".join(text.split())


@given(st.text(), st.integers(4, 30))
def test_no_character_is_lost_and_no_passage_is_over_long(text: str, limit: int) -> None:
    passages = split_passages(text, count_tokens=count_bytes, max_passage_tokens=limit)
    assert squeeze("".join(passages)) == squeeze(text)
    assert all(0 < count_bytes(passage) <= limit for passage in passages)


@given(st.text(st.sampled_from("ab. \n!")), st.integers(1, 10))
def test_words_stay_whole_and_in_order(text: str, limit: int) -> None:
    passages = split_passages(text, count_tokens=count_words, max_passage_tokens=limit)
    assert [word for passage in passages for word in passage.split()] == text.split()
    assert all(0 < count_words(passage) <= limit for passage in passages)


@given(st.text(st.sampled_from("ab. \n"), max_size=60), st.integers(4, 20))
def test_the_bound_holds_for_a_counter_that_is_not_monotone(text: str, limit: int) -> None:
    def count(piece: str) -> int:
        return len(piece) // 2 + 3 * (len(piece) % 2)

    passages = split_passages(text, count_tokens=count, max_passage_tokens=limit)
    assert squeeze("".join(passages)) == squeeze(text)
    assert all(count(passage) <= limit for passage in passages)


def test_a_natural_end_is_passed_over_where_the_shorter_text_has_more_tokens() -> None:
    def count(piece: str) -> int:
        return 100 if piece.endswith(".") else count_words(piece)

    passages = split_passages("a b c d. e f g h", count_tokens=count, max_passage_tokens=6)
    assert passages == ["a b c d. e f", "g h"]


def test_a_text_that_fits_is_one_passage() -> None:
    text = "One. Two.\n\nThree."
    assert split_passages(text, count_tokens=count_words, max_passage_tokens=3) == [text]


def test_cuts_fall_at_paragraphs_before_sentences() -> None:
    text = "a b c. d e.\n\nf g. h i j k."
    passages = split_passages(text, count_tokens=count_words, max_passage_tokens=8)
    assert passages == ["a b c. d e.", "f g. h i j k."]


def test_cuts_fall_at_sentences_before_words() -> None:
    passages = split_passages("a b c. d e f g", count_tokens=count_words, max_passage_tokens=5)
    assert passages == ["a b c.", "d e f g"]


def test_cuts_fall_at_words_where_no_sentence_ends() -> None:
    passages = split_passages("a b c d e f g", count_tokens=count_words, max_passage_tokens=5)
    assert passages == ["a b c d e", "f g"]


def test_a_closing_quote_belongs_to_its_sentence() -> None:
    passages = split_passages('a b "c d." e f g', count_tokens=count_words, max_passage_tokens=6)
    assert passages == ['a b "c d."', "e f g"]


def test_scripts_without_spaces_are_cut_at_their_full_stops() -> None:
    passages = split_passages("東京は首都。大阪は都市。", count_tokens=len, max_passage_tokens=8)
    assert passages == ["東京は首都。", "大阪は都市。"]


def test_an_over_long_word_is_cut_by_characters() -> None:
    passages = split_passages("x " + "y" * 25 + " z", count_tokens=len, max_passage_tokens=10)
    assert passages == ["x", "y" * 10, "y" * 10, "yyyyy z"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_passage_tokens must be at least 1, got {limit}"):
        split_passages("a", count_tokens=len, max_passage_tokens=limit)


def test_a_limit_too_small_for_one_character_is_refused() -> None:
    with pytest.raises(ValueError, match=r"room for any single character, got 2, but '€' takes 3 tokens"):
        split_passages("a€", count_tokens=count_bytes, max_passage_tokens=2)


@pytest.mark.parametrize(
    "text",
    ["word " * 200_000, "x" * 1_000_000, "A sentence of words. " * 50_000, ("a " * 300 + "y" * 20_000 + " ") * 45],
    ids=["words", "one word", "sentences", "mixed"],
)
def test_counting_a_megabyte_costs_a_small_multiple_of_its_length(text: str) -> None:
    counted = 0

    def count(piece: str) -> int:
        nonlocal counted
        counted += len(piece)
        return -(-len(piece) // 4)

    passages = split_passages(text, count_tokens=count, max_passage_tokens=500)
    assert squeeze("".join(passages)) == squeeze(text)
    assert counted < 30 * len(text)
    assert len(passages) < 1.6 * len(text) / 2000


def test_a_short_text_takes_one_call_and_its_summary_is_verbatim() -> None:
    calls: list[list[str]] = []

    def run(prompts: list[str]) -> list[str]:
        calls.append(prompts)
        return ["\n short "]

    summary = summarize("a b c", run=run, count_tokens=count_words, max_passage_tokens=3, render=lambda t: f"<{t}>")
    assert summary == "\n short "
    assert calls == [["<a b c>"]]


def test_a_long_text_is_mapped_in_one_batch_and_then_reduced() -> None:
    calls: list[list[str]] = []

    def run(prompts: list[str]) -> list[str]:
        calls.append(prompts)
        return first_words(1, prompts)

    summary = summarize("a b c d e f", run=run, count_tokens=count_words, max_passage_tokens=3, render=str)
    assert calls == [["a b c", "d e f"], ["a\n\nd"]]
    assert summary == "a"


@given(st.integers(1, 400), st.integers(2, 20))
def test_rounds_go_on_until_one_passage_fits(n_words: int, limit: int) -> None:
    calls: list[list[str]] = []

    def run(prompts: list[str]) -> list[str]:
        calls.append(prompts)
        return first_words(1, prompts)

    text = " ".join(f"w{i}" for i in range(n_words))
    assert summarize(text, run=run, count_tokens=count_words, max_passage_tokens=limit, render=str) == "w0"
    assert [len(prompts) == 1 for prompts in calls] == [False] * (len(calls) - 1) + [True]


def test_summaries_that_do_not_shrink_are_an_error_and_no_endless_loop() -> None:
    with pytest.raises(GenerationError, match="summaries must be shorter than their text: 2 passages of together 6"):
        summarize("a b c d e f", run=list, count_tokens=count_words, max_passage_tokens=3, render=str)


def test_empty_summaries_end_in_an_empty_summary() -> None:
    summary = summarize(
        "a b c d", run=lambda prompts: [" "] * len(prompts), count_tokens=count_words, max_passage_tokens=2, render=str
    )
    assert summary == ""


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="text must contain something to summarize"):
        summarize(text, run=list, count_tokens=count_words, max_passage_tokens=2, render=str)


def test_half_of_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match="text must be Unicode text, got half of a surrogate pair at character 3"):
        summarize("one\ud800", run=list, count_tokens=count_words, max_passage_tokens=9, render=str)


def test_a_run_that_loses_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts gave 1 texts"):
        summarize(
            "a b c d", run=lambda prompts: prompts[:1], count_tokens=count_words, max_passage_tokens=2, render=str
        )
