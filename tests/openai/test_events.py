"""Server-sent events: the same data however the bytes are cut."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit_openai.events import EventReader


def read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    found = [data for piece in pieces for data in reader.feed(piece)]
    return [*found, *reader.end()]


@given(
    texts=st.lists(st.text(), min_size=1, max_size=4),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_events_do_not_depend_on_how_the_bytes_are_cut(texts: list[str], line_end: str, cuts: list[int]) -> None:
    lines = [line for text in texts for line in (f"data: {json.dumps(text, ensure_ascii=False)}", "")]
    stream = (line_end.join(lines) + line_end).encode("utf-8", "surrogatepass")
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert [json.loads(data.decode("utf-8", "surrogatepass")) for data in read(*pieces)] == texts


def test_a_line_end_cut_in_two_is_one() -> None:
    stream = b"data: a\r\ndata: b\r\n\r\n"
    for at in range(len(stream)):
        assert read(stream[:at], stream[at:]) == [b"a\nb"]


def test_a_character_cut_in_two_is_whole() -> None:
    stream = 'data: "é😀"\n\n'.encode()
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == ['"é😀"'.encode()]


def test_line_separators_inside_json_are_text() -> None:
    assert read('data: "a\u2028b\u0085c"\n\n'.encode()) == ['"a\u2028b\u0085c"'.encode()]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b": a comment\n\ndata: 1\n\n: ping\n\n", [b"1"]),
        (b"event: x\nid: 3\nretry: 10\ndata: 1\n\n", [b"1"]),
        (b"data:1\n\ndata:  2\n\n", [b"1", b" 2"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
        (b"\n\n\ndata: 1\n\n\n\n", [b"1"]),
        (b"data: 1\n", [b"1"]),
        (b"data: whole\n\ndata: cut sho", [b"whole"]),
        (b"", []),
    ],
)
def test_stream_is_read_as_the_standard_says(stream: bytes, expected: list[bytes]) -> None:
    assert read(stream) == expected
