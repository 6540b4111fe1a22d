"""Writes the tables of generation parameters into their pages, or checks that those there are fresh.

    python -m tools.parameter_table           write docs/reference/parameters.md and the backends' pages
    python -m tools.parameter_table --check   fail if a table is not what the code says

Names, rules and meanings come from `llmkit.params.SPECS`, support from the `capabilities` of each backend that llmkit
ships. The text around a table is written by hand and left alone.
"""

import argparse
import sys
from pathlib import Path

from llmkit.capabilities import Capabilities
from llmkit.params import SPECS
from llmkit.registry import available_backends, backend_class

DOCS = Path(__file__).parent.parent / "docs"
PATH = DOCS / "reference" / "parameters.md"
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


def support_table(columns: dict[str, Capabilities]) -> str:
    """The table of a backend's page: what it honours, a row a parameter or feature."""
    header = ["", *columns]
    rows = [header, ["---"] * len(header)]
    rows += [[f"`{name}`", *(yes_no(name in c.params) for c in columns.values())] for name in SPECS]
    rows.append(["tools", *(yes_no(c.tools) for c in columns.values())])
    rows.append(["structured output", *(", ".join(sorted(c.structured)) or "no" for c in columns.values())])
    rows.append(["streaming", *(yes_no(c.streaming) for c in columns.values())])
    rows.append(["reproducible", *(c.reproducible for c in columns.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def columns(backend: str) -> dict[str, Capabilities]:
    """A backend's capabilities; those of the openai backend depend on the server."""
    if backend != "openai":
        return {backend: backend_class(backend).capabilities}
    from llmkit_openai.servers import KINDS

    return {name: kind.capabilities for name, kind in KINDS.items()}


def shipped() -> list[str]:
    """The backends of llmkit's own distribution; others may be installed next to it."""
    return [name for name, info in available_backends().items() if info.distribution.split()[0] == "llmkit"]


def tables() -> dict[Path, str]:
    """The fresh table of each page: that of all parameters, and one a backend."""
    pages = {PATH: table({name: backend_class(name).capabilities for name in shipped()})}
    for name in shipped():
        pages[DOCS / "backends" / f"{name.replace('_', '-')}.md"] = support_table(columns(name))
    return pages


def main(arguments: list[str] | None = None) -> str | None:
    """Returns the problem that `--check` found, as `sys.exit` takes it."""
    parser = argparse.ArgumentParser(description="The tables of generation parameters.")
    parser.add_argument("--check", action="store_true", help="fail if a committed table is stale")
    options = parser.parse_args(arguments)
    for path, fresh in tables().items():
        page = path.read_text(encoding="utf-8")
        if options.check and page != with_table(page, fresh):
            return f"{path} is stale; run: python -m tools.parameter_table"
        if not options.check:
            path.write_text(with_table(page, fresh), encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
