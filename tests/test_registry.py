from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from llmkit import registry
from llmkit.errors import BackendUnavailable, InvalidRequest, UnknownBackend
from llmkit.registry import available_backends, backend_class, resolve_name


def installed(folder: Path, name: str, target: str, requires: str = "") -> None:
    """A distribution with one backend, as pip leaves it on the path."""
    info = folder / f"{name}_plugin-1.0.dist-info"
    info.mkdir()
    extra = f"Provides-Extra: {name}\n{requires}" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n{extra}")
    (info / "entry_points.txt").write_text(f"[llmkit.backends]\n{name} = {target}\n")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt2", ("transformers", "gpt2")),
        ("org/name", ("transformers", "org/name")),
        ("org/name@main", ("transformers", "org/name@main")),
        ("/some/folder", ("transformers", "/some/folder")),
        ("C:\\models\\one", ("transformers", "C:\\models\\one")),
        ("models/q4.gguf", ("llama_cpp", "models/q4.gguf")),
        ("org/repo:q4.gguf", ("llama_cpp", "org/repo:q4.gguf")),
        ("http://localhost:8000/v1#name", ("openai", "http://localhost:8000/v1#name")),
        ("https://host/v1", ("openai", "https://host/v1")),
        ("transformers:gpt2", ("transformers", "gpt2")),
        ("transformers:", ("transformers", None)),
    ],
)
def test_a_name_means_a_backend(model: str, expected: tuple[str, str | None]) -> None:
    assert resolve_name(model) == expected


def test_no_name_means_the_embedded_model_of_a_usable_backend() -> None:
    backend, name = resolve_name(None)
    assert backend in available_backends()
    assert name is None


def test_an_unknown_backend_is_refused_with_the_nearest_and_those_that_are_there() -> None:
    with pytest.raises(
        UnknownBackend, match=r"'transformer'; did you mean 'transformers'\?; installed: .*transformers"
    ):
        resolve_name("transformer:gpt2")
    with pytest.raises(UnknownBackend):
        backend_class("no_such")


@pytest.mark.parametrize("model", ["", "  ", 5, ["gpt2"]])
def test_what_is_no_name_is_refused(model: Any) -> None:
    with pytest.raises(InvalidRequest, match="model must be a non-empty string"):
        registry.load(model)


def test_a_plugin_is_listed_and_loaded_like_the_backends_of_this_tree(plugins: Path) -> None:
    installed(plugins, "echo", "echo_backend:EchoLLM")
    (plugins / "echo_backend.py").write_text(
        "from llmkit.base import BaseLLM\n"
        "class EchoLLM(BaseLLM):\n"
        "    def run(self, task=None, *args, **kwargs):\n"
        "        return f'{self.model_name}: {task}'\n"
    )
    info = available_backends()["echo"]
    assert (info.target, info.distribution, info.available) == ("echo_backend:EchoLLM", "echo-plugin 1.0", True)
    assert "echo_backend" not in sys.modules
    assert registry.load("echo:m", top_k=3).run("hi") == "m: hi"
    sys.modules.pop("echo_backend")


def test_a_backend_without_its_dependencies_says_what_to_install(plugins: Path) -> None:
    installed(plugins, "hollow", "hollow_backend:LLM", 'Requires-Dist: no-such-thing; extra == "hollow"\n')
    (plugins / "hollow_backend.py").write_text("import no_such_thing\n")
    info = available_backends()["hollow"]
    assert (info.missing, info.available) == (("no-such-thing",), False)
    expected = r'the hollow backend needs no-such-thing, which is not installed: pip install "hollow-plugin\[hollow\]"'
    with pytest.raises(BackendUnavailable, match=expected):
        registry.load("hollow:m")


def test_listing_imports_no_backend() -> None:
    code = (
        "import sys, llmkit; names = list(llmkit.available_backends()); assert 'transformers' in names, names; "
        "heavy = {'torch', 'transformers', 'llmkit_transformers', 'llama_cpp'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_the_group_is_the_one_that_third_parties_use() -> None:
    point = EntryPoint("transformers", "llmkit_transformers:TransformersLLM", registry.GROUP)
    assert backend_class("transformers") is point.load()
