"""How long whole processes take, from their start to their end."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.measure import Row, interleaved, row

ROOT = Path(__file__).parent.parent
N_ROUNDS = 9
IMPORT = "import sys, llmkit; sys.exit('torch' in sys.modules)"
LLMKIT = str(Path(sysconfig.get_path("scripts"), "llmkit"))
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "import llmkit, without torch": ([sys.executable, "-c", IMPORT], 0.15),
    "llmkit --help": ([LLMKIT, "--help"], 0.4),
    "llmkit task examples/task.json (make run)": ([LLMKIT, "task", "examples/task.json"], 8.0),
}


def startup() -> list[Row]:
    """Each command as a process of its own; one that fails ends the benchmark."""
    sides = {name: lambda command=command: _run(command) for name, (command, _) in COMMANDS.items()}
    seconds = interleaved(sides, N_ROUNDS)
    return [row("startup", name, "s", seconds[name], limit) for name, (_, limit) in COMMANDS.items()]


def _run(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
