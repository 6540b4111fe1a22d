import json
import signal
import subprocess

import pytest

from .conftest import LLMKIT, Run

SCRIPTED = ["-m", "scripted:x"]


@pytest.mark.parametrize("how", [[], ["--stream"], ["--no-stream"]])
def test_stdout_is_the_text_and_one_line_end(llmkit: Run, how: list[str]) -> None:
    process = llmkit("run", "hi", *SCRIPTED, *how)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == "you said hi é😀\n"


def test_a_dash_reads_stdin_without_the_line_end_of_echo(llmkit: Run) -> None:
    assert llmkit("run", "-", *SCRIPTED, stdin="là\n\n").stdout == "you said là\n é😀\n"
    assert llmkit("run", "-", *SCRIPTED, stdin="hi\r\n").stdout == "you said hi é😀\n"


def test_stdin_is_left_alone_otherwise(llmkit: Run) -> None:
    assert llmkit("run", "hi", *SCRIPTED, stdin="ignored").stdout == "you said hi é😀\n"


@pytest.mark.parametrize(("prompt", "stdin"), [("", ""), ("-", ""), ("-", "\n")])
def test_an_empty_prompt_is_wrong_usage(llmkit: Run, prompt: str, stdin: str) -> None:
    process = llmkit("run", prompt, *SCRIPTED, stdin=stdin)
    assert (process.returncode, process.stdout) == (2, "")


def test_stdin_that_is_no_text_is_wrong_usage(environment: dict[str, str]) -> None:
    process = subprocess.run([LLMKIT, "run", "-", *SCRIPTED], input=b"\xff", capture_output=True, env=environment)
    assert (process.returncode, process.stdout) == (2, b"")
    assert b"not UTF-8" in process.stderr


def test_options_reach_the_model(llmkit: Run) -> None:
    assert llmkit("run", "count", *SCRIPTED, "--max-tokens", "2").stdout == "one two\n"
    assert llmkit("run", "count", *SCRIPTED, "--stop", "three", "--stop", "two").stdout == "one \n"
    assert llmkit("run", "count", *SCRIPTED, "-p", "max_new_tokens=1").stdout == "one\n"


def test_json_is_the_whole_completion(llmkit: Run) -> None:
    process = llmkit("run", "count", *SCRIPTED, "--json", "--max-tokens", "2", "--seed", "7", "--system", "be brief")
    completion = json.loads(process.stdout)
    assert completion["text"] == "one two"
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert completion["params"]["seed"] == 7
    assert completion["params"]["system_prompt"] == "be brief"
    assert {"timings", "fingerprint", "dropped_messages", "inert"} <= set(completion)


def test_several_choices_are_printed_one_after_another(llmkit: Run) -> None:
    arguments = ["run", "hi", *SCRIPTED, "-p", "n=8", "--temperature", "5", "--seed", "1"]
    texts = [choice["text"] for choice in json.loads(llmkit(*arguments, "--json").stdout)["choices"]]
    assert set(texts) == {"you said hi é😀", "another answer"}
    assert llmkit(*arguments).stdout == "".join(f"{text}\n" for text in texts)


@pytest.mark.parametrize("more", [["--json"], ["-p", "n=2"]])
def test_what_is_not_one_text_cannot_stream(llmkit: Run, more: list[str]) -> None:
    process = llmkit("run", "hi", *SCRIPTED, "--stream", *more)
    assert (process.returncode, process.stdout) == (2, "")


def test_raw_leaves_the_system_prompt_and_the_template_away(llmkit: Run) -> None:
    arguments = ["run", "hi", *SCRIPTED, "--system", "be brief", "--json"]
    assert json.loads(llmkit(*arguments).stdout)["usage"]["prompt_tokens"] == 4
    assert json.loads(llmkit(*arguments, "--raw").stdout)["usage"]["prompt_tokens"] == 1


def test_pieces_come_while_the_model_writes_and_ctrl_c_exits_with_130(environment: dict[str, str]) -> None:
    arguments = [LLMKIT, "run", "count", *SCRIPTED, "-p", "pause_s=0.5"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.read(3) == b"one"
    process.send_signal(signal.SIGINT)
    rest, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"ten" not in rest
    assert b"Traceback" not in words


def test_the_embedded_model_answers_without_any_option(llmkit: Run) -> None:
    process = llmkit("run", "What is the capital of France?")
    assert (process.returncode, process.stderr) == (0, "")
    assert "Paris" in process.stdout
