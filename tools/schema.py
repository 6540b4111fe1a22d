"""Writes the JSON schema of GPT tasks where the package ships it, or checks that the one there is fresh.

    python -m tools.schema           write llmkit/gpt_task/schema.json
    python -m tools.schema --check   fail if it is not what the code says

What the schema says is made in `llmkit/gpt_task/schema.py`.
"""

import argparse
import json
import sys
from pathlib import Path

from llmkit.gpt_task import json_schema

PATH = Path(__file__).parent.parent / "llmkit" / "gpt_task" / "schema.json"


def rendered() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def problem_with(path: Path) -> str | None:
    """What is wrong with a committed schema, and what to do; None where it is fresh."""
    if not path.exists():
        return f"{path} is missing; run: python -m tools.schema"
    if path.read_text(encoding="utf-8") != rendered():
        return f"{path} is stale, the GPT task's shapes have changed; run: python -m tools.schema"
    return None


def main(arguments: list[str] | None = None) -> str | None:
    """Returns the problem that `--check` found, as `sys.exit` takes it."""
    parser = argparse.ArgumentParser(description="The JSON schema of GPT tasks.")
    parser.add_argument("--check", action="store_true", help="fail if the committed schema is stale")
    parser.add_argument("--path", type=Path, default=PATH, help="the schema's file")
    options = parser.parse_args(arguments)
    if options.check:
        return problem_with(options.path)
    options.path.write_text(rendered(), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
