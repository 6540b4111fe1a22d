from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.text import Detokenizer, OutputText, StopMatcher
from tests import tiny_models


@functools.cache
def tokenizer(kind: str) -> Any:
    plain = tiny_models.byte_level_tokenizer() if kind == "bytes" else tiny_models.metaspace_tokenizer()
    return tiny_models.wrapped(plain)


def decode_with(kind: str) -> Any:
    return lambda ids: tokenizer(kind).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def ids_of(kind: str, text: str) -> list[int]:
    return tokenizer(kind)(text)["input_ids"]


def fed(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    return "".join([*(detokenizer.feed(token_id) for token_id in ids), detokenizer.flush()])


def cut(text: str, borders: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(border % (len(text) + 1) for border in borders)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def matched(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = "".join([*(matcher.feed(piece) for piece in pieces), matcher.flush()])
    return text, matcher.matched


def first_stop(stops: Sequence[str], text: str) -> tuple[str, str | None]:
    """By definition: the shortest beginning of the text that ends in a stop string, without the longest such string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


TEXTS = st.text(
    st.sampled_from("ab hello wörld日本語😀\u200d👦\n") | st.characters(exclude_categories=["Cs"]), max_size=30
)
SMALL_TEXTS = st.text("abc", max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4)
BORDERS = st.lists(st.integers(0, 1000), max_size=6)


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
@given(text=TEXTS)
def test_joined_pieces_are_the_decoded_text(kind: str, text: str) -> None:
    ids = ids_of(kind, text)
    assert fed(Detokenizer(decode_with(kind)), ids) == decode_with(kind)(ids)


@given(text=TEXTS)
def test_byte_level_pieces_are_the_text_itself(text: str) -> None:
    assert fed(Detokenizer(decode_with("bytes")), ids_of("bytes", text)) == text


@given(text=TEXTS)
def test_no_piece_of_a_valid_text_holds_a_broken_character(text: str) -> None:
    detokenizer = Detokenizer(decode_with("bytes"))
    pieces = [detokenizer.feed(token_id) for token_id in ids_of("bytes", text.replace("\ufffd", ""))]
    assert not any("\ufffd" in piece for piece in pieces)


def decode_bytes(ids: Sequence[int]) -> str:
    """A vocabulary in which a token's id is the number of its bytes, big-endian; 0 has no text."""
    return b"".join(token_id.to_bytes((token_id.bit_length() + 7) // 8, "big") for token_id in ids).decode(
        "utf-8", "replace"
    )


@example("😀😀", [1, 2, 3, 5, 6, 7])
@example("😀😀", [1, 3, 5, 6, 7])
@given(text=st.text("aé日😀", max_size=10), borders=BORDERS)
def test_tokens_may_cut_characters_anywhere(text: str, borders: list[int]) -> None:
    data = text.encode()
    places = sorted({0, len(data), *(border % (len(data) + 1) for border in borders)})
    ids = [int.from_bytes(data[start:end], "big") for start, end in itertools.pairwise(places)]
    assert fed(Detokenizer(decode_bytes), ids) == text


def test_a_space_survives_a_special_token_before_it() -> None:
    decode = decode_with("metaspace")
    words = ids_of("metaspace", "hello world")
    at = next(i for i, token in enumerate(tokenizer("metaspace").convert_ids_to_tokens(words)) if token == "▁w")
    ids = [*words[:at], tiny_models.EOT, *words[at:]]
    assert decode(ids) == "hello world"
    assert fed(Detokenizer(decode), ids) == "hello world"


def test_bytes_that_are_no_text_do_not_hold_back_the_rest_for_ever() -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.feed(0x9F) for _ in range(20)]
    assert "\ufffd" in "".join(pieces)


@given(st.lists(st.integers(0, 319), max_size=30))
def test_a_stream_of_any_tokens_gives_each_piece_once(ids: list[int]) -> None:
    """Also where the tokens are no valid text: the letters between the broken bytes are all there, in order."""
    letters = "abcdefghijklmnopqrstuvwxyz "
    decode = decode_with("bytes")
    streamed = fed(Detokenizer(decode), ids)
    assert [c for c in streamed if c in letters] == [c for c in decode(ids) if c in letters]


@given(stops=STOPS, text=SMALL_TEXTS, borders=BORDERS)
def test_stops_are_found_alike_however_the_text_is_cut(stops: list[str], text: str, borders: list[int]) -> None:
    assert matched(stops, cut(text, borders)) == first_stop(stops, text)


@given(stops=STOPS, text=SMALL_TEXTS, borders=BORDERS)
def test_nothing_that_was_given_out_belongs_to_a_stop_string(stops: list[str], text: str, borders: list[int]) -> None:
    matcher, given_out = StopMatcher(stops), ""
    final, _ = first_stop(stops, text)
    for piece in cut(text, borders):
        given_out += matcher.feed(piece)
        assert final.startswith(given_out)


@given(stops=STOPS, text=SMALL_TEXTS)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    given_out = matcher.feed(text)
    held = "" if matcher.matched else text[len(given_out) :]
    assert held == "" or any(stop.startswith(held) for stop in stops)


def test_the_stop_that_is_complete_first_wins() -> None:
    assert matched(["abcd", "bc"], ["xabcd"]) == ("xa", "bc")


def test_of_stops_that_end_together_the_longest_wins() -> None:
    assert matched(["bc", "abc"], ["xabc"]) == ("x", "abc")


@given(
    text=TEXTS,
    stops=st.lists(st.sampled_from(["lo", "hello", "😀", "世", " w", "\n"]), max_size=3),
    n=st.integers(1, 40),
    ends=st.booleans(),
)
def test_an_output_is_the_beginning_of_the_text_up_to_what_ends_it(
    text: str, stops: list[str], n: int, ends: bool
) -> None:
    ids = [*ids_of("bytes", text), *([tiny_models.EOS] if ends else [])]
    output = OutputText(decode_with("bytes"), stops=stops, eos_ids=[tiny_models.EOS], max_tokens=n)
    pieces: list[str] = []
    for token_id in ids:
        if output.finish_reason is None:
            pieces.append(output.feed(token_id))
    if output.finish_reason is None:
        pieces.append(output.end("length"))
    whole, stop = first_stop(stops, decode_with("bytes")(output.token_ids))
    assert "".join(pieces) == whole
    ended = stop is not None or output.token_ids[-1:] == [tiny_models.EOS]
    assert output.finish_reason == ("stop" if ended else "length")
    assert output.token_ids == ids[: len(output.token_ids)]
    assert len(output.token_ids) <= n


def test_eos_is_counted_and_has_no_text() -> None:
    output = OutputText(decode_bytes, eos_ids=[7])
    assert (output.feed(7), output.finish_reason, output.token_ids) == ("", "stop", [7])


def test_a_stop_string_in_what_was_held_back_still_counts_at_the_end() -> None:
    output = OutputText(decode_bytes, stops=["\ufffd"], max_tokens=1)
    assert (output.feed(0xF0), output.finish_reason) == ("", "stop")
