import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from .conftest import LLMKIT, Run


def test_help_lists_every_command_and_is_plain_text(llmkit: Run) -> None:
    process = llmkit("--help")
    assert process.returncode == 0
    assert process.stderr == ""
    assert {"run", "task", "chat", "prepare", "backends", "schema"} <= set(process.stdout.split())
    assert process.stdout.isascii(), "no boxes where no terminal reads it"


HEAVY = {"torch", "transformers", "numpy", "pydantic", "jinja2", "jsonschema", "yaml"}


def test_help_imports_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.argv = ['llmkit', '--help']\n"
        "from llmkit.cli.main import main\n"
        "try: main()\n"
        "finally: print(*sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = set(process.stdout.splitlines()[-1].split())
    assert "llmkit.cli.main" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_version_is_that_of_the_package(llmkit: Run) -> None:
    process = llmkit("--version")
    assert (process.returncode, process.stdout) == (0, f"llmkit {version('llmkit')}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run"], "PROMPT"),
        (["run", "hi", "--bogus"], "--bogus"),
        (["run", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["schema", "answer"], "answer"),
    ],
)
def test_wrong_usage_exits_with_2_and_keeps_stdout_clean(llmkit: Run, arguments: list[str], words: str) -> None:
    process = llmkit(*arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert words in process.stderr


def test_an_error_of_llmkit_is_one_line(llmkit: Run) -> None:
    process = llmkit("run", "BOOM", "-m", "scripted:x")
    assert process.returncode == 1
    assert process.stderr == "error: scripted to fail on 'BOOM'\n"


def test_any_other_error_is_one_line_that_says_how_to_see_more(llmkit: Run) -> None:
    process = llmkit("run", "bug", "-m", "scripted:x")
    assert process.returncode == 1
    assert process.stderr == "error: RuntimeError: not an error of llmkit (LLMKIT_DEBUG=1 shows where)\n"


@pytest.mark.parametrize(("flags", "variables"), [(["--debug"], {}), ([], {"LLMKIT_DEBUG": "1"})])
def test_debug_shows_the_traceback_before_the_line(llmkit: Run, flags: list[str], variables: dict[str, str]) -> None:
    process = llmkit(*flags, "run", "BOOM", "-m", "scripted:x", **variables)
    assert process.returncode == 1
    assert process.stderr.startswith("Traceback")
    assert process.stderr.endswith("error: scripted to fail on 'BOOM'\n")


def test_debug_0_is_off(llmkit: Run) -> None:
    assert "Traceback" not in llmkit("run", "BOOM", "-m", "scripted:x", LLMKIT_DEBUG="0").stderr


def test_a_warning_is_one_line_on_stderr(llmkit: Run) -> None:
    process = llmkit("run", "warn", "-m", "scripted:x", "--no-stream")
    assert process.returncode == 0
    assert process.stderr == "warning: mind the gap\n"


@pytest.mark.parametrize("arguments", [["--help"], ["schema"], ["run", "count", "-m", "scripted:x"]])
def test_a_reader_that_leaves_is_no_error_message(environment: dict[str, str], arguments: list[str]) -> None:
    process = subprocess.Popen([LLMKIT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    words = process.stderr.read()
    process.stderr.close()
    assert words == b""
    assert process.wait() in (0, 1)


def test_a_reader_that_leaves_ends_the_generation(environment: dict[str, str]) -> None:
    arguments = ["run", "count", "-m", "scripted:x", "-p", "pause_s=0.3", "-p", "max_tokens=200"]
    process = subprocess.Popen([LLMKIT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(3) == b"one"
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_backends_says_what_is_there_as_a_table_and_as_json(llmkit: Run) -> None:
    table = llmkit("backends")
    assert (table.returncode, table.stderr) == (0, "")
    heading, *rows = table.stdout.splitlines()
    assert heading.split() == ["NAME", "PACKAGE", "STATUS"]
    assert ["scripted", "scripted-plugin", "1.0", "available"] in [row.split() for row in rows]
    listed = {entry["name"]: entry for entry in json.loads(llmkit("backends", "--json").stdout)}
    assert listed["scripted"]["available"] is True
    assert listed["transformers"]["install"] == 'pip install "llmkit[transformers]"'


def test_backends_shows_the_pip_line_of_what_is_missing(llmkit: Run, environment: dict[str, str]) -> None:
    info = f"{environment['PYTHONPATH']}/scripted_plugin-1.0.dist-info"
    with open(f"{info}/METADATA", "a") as file:
        file.write('Provides-Extra: scripted\nRequires-Dist: no-such-package; extra == "scripted"\n')
    row = next(line for line in llmkit("backends").stdout.splitlines() if line.startswith("scripted"))
    assert row.endswith('pip install "scripted-plugin[scripted]"')
