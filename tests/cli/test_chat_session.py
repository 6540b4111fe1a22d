import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from llmkit.cli.chat_session import ChatSession
from llmkit.testing import ScriptedLLM
from llmkit.types import Chunk, Message, Request


class Talk:
    """Holds a conversation with given lines and keeps what is written and said."""

    def __init__(self, llm: ScriptedLLM, *, system: str | None = None, interrupt_at: str | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.written, self.said = "", list[str]()
        self.lines: Iterator[str] = iter(())
        self.session = ChatSession(llm, self._read, self._write, self.said.append, system)

    def _read(self) -> str:
        try:
            return next(self.lines)
        except StopIteration:
            raise EOFError from None

    def _write(self, text: str) -> None:
        self.written += text
        if text == self.interrupt_at:
            raise KeyboardInterrupt

    def __call__(self, *lines: str) -> list[tuple[str, str]]:
        self.lines = iter(lines)
        self.session.converse()
        return [(message.role, message.content) for message in self.session.messages]


class Watched(ScriptedLLM):
    """Knows whether its generation was ended."""

    has_stopped = False

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        try:
            yield from super()._generate(requests)
        finally:
            self.has_stopped = True


def echo(prompt: str) -> str:
    return f"you said {prompt}"


def test_a_turn_adds_both_sides_and_the_model_reads_the_whole_conversation() -> None:
    llm = ScriptedLLM(echo)
    talk = Talk(llm)
    assert talk("a", "b") == [("user", "a"), ("assistant", "you said a"), ("user", "b"), ("assistant", "you said b")]
    assert talk.written == "you said a\nyou said b\n"
    assert talk.said == []
    assert [message.content for message in llm.requests[-1].prompt] == ["a", "you said a", "b"]  # pyright: ignore
    assert llm.history == []


def test_blank_lines_are_no_turns() -> None:
    assert Talk(ScriptedLLM())("", "  ") == []


def test_an_answer_of_nothing_is_an_answer() -> None:
    assert Talk(ScriptedLLM(""))("a") == [("user", "a"), ("assistant", "")]


def test_a_failed_turn_leaves_the_history_as_it_was_and_the_next_one_works() -> None:
    talk = Talk(ScriptedLLM(echo, fail_on="BOOM"))
    assert talk("a", "BOOM", "b") == [
        ("user", "a"),
        ("assistant", "you said a"),
        ("user", "b"),
        ("assistant", "you said b"),
    ]
    assert talk.said == ["error: scripted to fail on 'BOOM'"]
    assert talk.session.n_failed == 1
    assert talk.written == "you said a\nyou said\nyou said b\n", "the piece that came keeps a line of its own"


def test_an_interrupted_turn_is_dropped_and_the_model_stops() -> None:
    llm = Watched("one two three")
    talk = Talk(llm, interrupt_at=" two")
    assert talk("a") == []
    assert (talk.written, talk.said) == ("one two\n", ["(dropped)"])
    assert llm.has_stopped


def test_the_system_prompt_is_read_first_changed_and_removed() -> None:
    llm = ScriptedLLM(echo)
    talk = Talk(llm, system="be kind")
    talk("a", "/system be brief", "b", "/system", "c")
    firsts = [(request.prompt[0].role, request.prompt[0].content) for request in llm.requests]  # pyright: ignore
    assert firsts == [("system", "be kind"), ("system", "be brief"), ("user", "a")]
    assert talk.said == ["(system prompt set)", "(system prompt removed)"]


def test_clear_forgets_the_turns_and_keeps_the_system_prompt() -> None:
    talk = Talk(ScriptedLLM(echo), system="be kind")
    assert talk("a", "/clear") == [("system", "be kind")]


@pytest.mark.parametrize(
    ("typed", "meant"), [("/clearr", "/clear"), ("/exti", "/exit"), ("/systemm be kind", "/system")]
)
def test_an_unknown_command_gets_the_nearest_and_is_not_sent(typed: str, meant: str) -> None:
    talk = Talk(ScriptedLLM())
    assert talk(typed) == []
    assert f"did you mean {meant!r}?" in talk.said[0]


def test_two_slashes_begin_a_message_with_one() -> None:
    assert Talk(ScriptedLLM())("//etc")[0] == ("user", "/etc")


def test_exit_leaves() -> None:
    assert Talk(ScriptedLLM())("/exit", "a") == []


def test_help_names_every_command() -> None:
    talk = Talk(ScriptedLLM())
    talk("/help")
    assert all(name in talk.said[0] for name in ("/clear", "/system", "/save", "/help", "/exit", "//", "Ctrl-C"))


def test_a_model_that_plays_the_user_answers_as_one() -> None:
    assert Talk(ScriptedLLM("hello", role="user"))("hi") == [("assistant", "hi"), ("user", "hello")]


# --- /save ----------------------------------------------------------------------------------------------------------


def saved(path: Path) -> list[Message]:
    return [Message.from_dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def test_save_writes_the_conversation_as_lines_of_messages(tmp_path: Path) -> None:
    path = tmp_path / "a chat.jsonl"
    path.write_text("an older conversation")
    talk = Talk(ScriptedLLM("two\nlines é"), system="be kind")
    talk("a", f"/save {path}")
    assert saved(path) == talk.session.messages
    assert list(tmp_path.iterdir()) == [path]


def test_save_through_a_link_replaces_what_it_points_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    Talk(ScriptedLLM())("a", f"/save {link}")
    assert link.is_symlink()
    assert len(saved(target)) == 2


FULL_DISK = """
import resource, sys
from llmkit.cli.chat_session import ChatSession
from llmkit.testing import ScriptedLLM

def lines():
    yield "a"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    yield f"/save {sys.argv[1]}"
    yield "/exit"

said, typed = [], lines()
ChatSession(ScriptedLLM("long " * 1000), lambda: next(typed), lambda text: None, said.append).converse()
raise SystemExit(0 if "error: cannot save" in said[-1] else f"said {said}")
"""


def test_a_save_that_fails_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("an older conversation")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == "an older conversation"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "missing/chat.jsonl", "folder"])
def test_a_place_that_cannot_be_written_is_said_and_the_chat_goes_on(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    talk = Talk(ScriptedLLM(echo))
    assert len(talk(f"/save {tmp_path / name if name else ''}", "a")) == 2
    assert talk.said[0].startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
