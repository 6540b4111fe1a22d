"""Every example runs offline in a process of its own and prints what it is there to show, or what it misses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
MAX_LINES = 60

PRINTED = {
    "quickstart.py": (
        "The capital of France is Paris.\n"
        "Why did the model go to school? It wanted to improve its class.\n"
        "The capital of Peru is Lima. 10 stop\n"
    ),
    "subclass.py": ("three two one\n['b a', 'd c']\nyou are how\n['user', 'assistant']\n4 generations\n"),
    "chat.py": "1: The capital of Japan is Tokyo.\n2: The capital of Italy is Rome.\n4 messages\n",
    "batch.py": (
        "What is the capital of Spain? -> The capital of Spain is Madrid.\n"
        "Tell me a joke. -> Why did the model go to school? It wanted to improve its class.\n"
        "Translate to French: Good morning -> Bonjour\n"
        "equal to single runs: True\n"
    ),
    "structured.py": (
        "City\n"
        "contradiction\n"
        "The capital of France is Paris.\n"
        "too few tokens: True\n"
        'the schema cannot be used: Unimplemented keys: ["uniqueItems"]\n'
    ),
    "tools.py": (
        "weather {'city': 'Rome', 'days': 2} None\n{\"Rome\":[20,21]}\n['user', 'assistant', 'tool', 'assistant']\n"
    ),
    "pipeline.py": (
        "flowchart LR\n"
        "  source([rows])\n"
        '  n0["question"]\n'
        '  n1{"known"}\n'
        '  n2["ask<br>TextGeneration"]\n'
        '  n3["skip"]\n'
        "  result([results])\n"
        "  source --> n0\n"
        "  n0 --> n1\n"
        "  n1 --> n2\n"
        "  n1 --> n3\n"
        "  n2 --> result\n"
        "  n3 --> result\n"
        "\n"
        "France -> The capital of France is Paris.\n"
        "Peru -> The capital of Peru is Lima.\n"
        "- -> None\n"
        "3 rows, 6 computed, 0 reused\n"
        "3 rows, 0 computed, 6 reused\n"
    ),
    "tasks.py": (
        "What is the capital of Peru? -> The capital of Peru is Lima.\n"
        "7 -> InvalidRequest: question must be a non-empty string, got 7\n"
        "['Bonjour', 'Merci']\n"
        "Oslo {'raw_output_shots': ' Oslo'}\n"
        "2 rows, 1 failed\n"
    ),
    "prompt_styles.py": (
        "human_bot: '<human>: Hello!<bot>: Hi!\\n<human>: How are you?<bot>: '\n"
        "llama2: '<s>[INST] Hello! [/INST] Hi! </s><s>[INST] How are you? [/INST]'\n"
        "chatml: '<|im_start|>user\\nHello!<|im_end|>\\n<|im_start|>assistant\\nHi!<|im_end|>\\n"
        "<|im_start|>user\\nHow are you?<|im_end|>\\n<|im_start|>assistant\\n'\n"
        "vicuna11\n"
        "The capital of France is Paris.\n"
    ),
    "errors.py": (
        "ParameterError: top_p must be in (0, 1], got 1.7\n"
        "UnknownParameter: unknown parameter 'max_token'; did you mean 'max_tokens'?\n"
        "ParameterError: num_beams and beam_width are one parameter, got 2 and 3\n"
        "ParameterError: num_return_sequences must be <= num_beams, got 3 and 2\n"
        "too long: True\n"
    ),
}

# What an example says that needs weights which are not here.
REFUSED = {
    "gptj.py": "cannot run: model 'EleutherAI/gpt-j-6b' is not on this machine, and the hub is offline\n",
}


def finished(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - set(REFUSED)))
def test_an_example_prints_what_it_shows(name: str, tmp_path: Path) -> None:
    run = finished(name, tmp_path)
    assert (run.returncode, run.stdout) == (0, PRINTED[name]), run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize("name", REFUSED)
def test_an_example_that_needs_weights_says_so_and_stops(name: str, tmp_path: Path) -> None:
    run = finished(name, tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (1, "", REFUSED[name])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
