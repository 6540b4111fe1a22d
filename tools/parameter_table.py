"""Writes the table of generation parameters into its reference page, or checks that the one there is fresh.

    python -m tools.parameter_table           write docs/reference/parameters.md
    python -m tools.parameter_table --check   fail if its table is not what the code says

Names, rules and meanings come from `llmkit.params.SPECS`, support from each installed backend's `capabilities`. The
text around the table is written by hand and left alone.
"""

import argparse
import sys
from pathlib import Path

from llmkit.capabilities import Capabilities
from llmkit.params import SPECS
from llmkit.registry import available_backends, backend_class

PATH = Path(__file__).parent.parent / "docs" / "reference" / "parameters.md"
BEGIN, END = "<!-- table: written by python -m tools.parameter_table -->", "<!-- end of table -->"


def table(backends: dict[str, Capabilities]) -> str:
    """The table in Markdown: a row a parameter, a column a backend."""
    header = ["name", "other names", "must be", "meaning", *backends]
    rows = [header, ["---"] * len(header)]
    for name, spec in SPECS.items():
        support = ["yes" if name in backend.params else "no" for backend in backends.values()]
        aliases = ", ".join(f"`{alias}`" for alias in spec.aliases)
        rows.append([f"`{name}`", aliases, escaped(spec.rule), escaped(spec.doc), *support])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def escaped(text: str) -> str:
    return text.replace("*", r"\*").replace("|", r"\|")


def with_table(page: str, fresh: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{fresh}\n{END}{rest.split(END)[1]}"


def rendered(page: str) -> str:
    return with_table(page, table({name: backend_class(name).capabilities for name in available_backends()}))


def main(arguments: list[str] | None = None) -> str | None:
    """Returns the problem that `--check` found, as `sys.exit` takes it."""
    parser = argparse.ArgumentParser(description="The table of generation parameters.")
    parser.add_argument("--check", action="store_true", help="fail if the committed table is stale")
    options = parser.parse_args(arguments)
    page = PATH.read_text(encoding="utf-8")
    fresh = rendered(page)
    if options.check:
        return None if page == fresh else f"{PATH} is stale; run: python -m tools.parameter_table"
    PATH.write_text(fresh, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
