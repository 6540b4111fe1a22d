"""Every Python snippet of the README and the documentation runs.

The blocks of one page share a namespace and run in order, in an empty directory. A block after the comment
`<!-- no-test: reason -->` (a model to download, a server to reach) is only compiled.
"""

import ast
import logging
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(
    r"^(?P<no_test><!-- no-test: \S.*-->\n+)?(?P<indent> *)```python.*\n(?P<code>(?:.*\n)*?)(?P=indent)```$",
    re.MULTILINE,
)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python" in page.read_text(encoding="utf-8")
]


class Snippet(NamedTuple):
    source: str
    runs: bool


def snippets(page: Path) -> list[Snippet]:
    """The page's blocks; each is padded with blank lines, so that a traceback names the line of the page."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet("\n" * text.count("\n", 0, m.start("code")) + textwrap.dedent(m["code"]), runs=m["no_test"] is None)
        for m in BLOCK.finditer(text)
    ]


@pytest.fixture
def _llama_cpp_stays_silent() -> Iterator[None]:
    """A page shows how to have llama.cpp's log, which is the whole process's."""
    yield
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 10)


@pytest.mark.usefixtures("_llama_cpp_stays_silent")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")], ids=lambda p: p.name
)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = snippets(page)
    assert len(found) == page.read_text(encoding="utf-8").count("```python"), "a block is not closed"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "snippet"}
    for snippet in found:
        tree = ast.parse(snippet.source, filename=str(page))
        if snippet.runs:
            exec(compile(tree, str(page), "exec"), namespace)


def test_a_block_marked_no_test_is_found_and_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- no-test: downloads a model -->\n```python\nload()\n```\n\n```python\nx = 1\n```\n")
    assert [(s.source.strip(), s.runs) for s in snippets(page)] == [("load()", False), ("x = 1", True)]
