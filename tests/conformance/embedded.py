"""The embedded model with a chat template that shows tools to it, as a folder and as GGUF; the same model otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import llmkit

TINY = Path(llmkit.__file__).parent / "tiny"
BOS = "{{ bos_token }}"
SHOWN_TOOLS = "{% if tools %}{{ '<|system|>' + tools | tojson + eos_token }}{% endif %}"


def template() -> str:
    own = (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    assert own.startswith(BOS)
    return own.replace(BOS, BOS + SHOWN_TOOLS, 1)


def as_folder(path: Path) -> Path:
    shutil.copytree(TINY, path, ignore=shutil.ignore_patterns("*.gguf"))
    (path / "chat_template.jinja").write_text(template(), encoding="utf-8")
    return path


def as_gguf(path: Path) -> Path:
    from tests.llama_cpp import ggufs

    return ggufs.changed(path, {ggufs.TEMPLATE: template()})
