"""What is shipped: the wheel's files, its metadata, and that the places which state a version agree."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
BACKENDS = ("llmkit_llama_cpp", "llmkit_openai", "llmkit_transformers")
PACKAGES = (ROOT / "llmkit", *(ROOT / "backends" / name for name in BACKENDS))

PLAIN = {
    "jinja2": "templates of tasks, and chat templates",
    "jsonschema": "checking schemas and the arguments of tool calls",
    "loguru": "the event log",
    "psutil": "memory and processors",
    "pydantic": "what comes from outside: GPT tasks, schemas of types, arguments of functions",
    "pyyaml": "pipelines and presets in files",
    "rich": "the command line",
    "tqdm": "progress of batches",
    "typer": "the command line",
}
"""What a plain install brings, and what for. All are small; each is imported where it is used."""

HEAVY = {
    *("torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "peft", "llama-cpp-python", "llguidance"),
    *("numpy", "pandas", "pyarrow", "datasets", "ray", "huggingface-hub", "httpx", "fastapi", "gradio", "matplotlib"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def source_files() -> set[str]:
    files = (f for package in PACKAGES for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return {f.relative_to(ROOT).as_posix().removeprefix("backends/") for f in files}


def test_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    shipped = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert shipped == source_files()


@pytest.mark.parametrize("name", [f"{package}/py.typed" for package in ("llmkit", *BACKENDS)])
def test_wheel_is_marked_as_typed(wheel: zipfile.ZipFile, name: str) -> None:
    assert name in wheel.namelist()


def test_wheel_holds_the_embedded_model(wheel: zipfile.ZipFile) -> None:
    suffixes = {Path(n).suffix for n in wheel.namelist() if n.startswith("llmkit/tiny/")}
    assert {".safetensors", ".gguf", ".json", ".jinja"} <= suffixes


def test_wheel_declares_command_and_backends(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/entry_points.txt"))
    entry_points = wheel.read(name).decode()
    assert "llmkit = llmkit.cli.main:main" in entry_points
    backends = entry_points.partition("[llmkit.backends]\n")[2].splitlines()
    assert {
        "llama_cpp = llmkit_llama_cpp:LlamaCppLLM",
        "openai = llmkit_openai:OpenAILLM",
        "transformers = llmkit_transformers:TransformersLLM",
    } <= set(backends)


def test_wheel_carries_its_licence(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(n.endswith("/licenses/LICENSE") for n in wheel.namelist())


def test_plain_install_is_light(metadata: Message) -> None:
    plain = [r for r in map(Requirement, metadata.get_all("Requires-Dist", [])) if r.marker is None]
    assert {r.name for r in plain} == PLAIN.keys()
    assert installed_with(plain).isdisjoint(HEAVY)
    assert installed_with([Requirement("transformers")]) >= {"numpy", "huggingface-hub"}, "what is brought along counts"


def installed_with(wanted: Iterable[Requirement]) -> set[str]:
    """The distributions that these requirements bring into this environment."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(r.name, extra) for r in wanted if applies(r) for extra in ("", *r.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        found.add(canonicalize_name(name))
        for line in needs_of(name):
            if applies(needed := Requirement(line), extra):
                waiting += [(needed.name, e) for e in ("", *needed.extras)]
    return found


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def needs_of(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def test_all_covers_every_extra_but_dev() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all", "dev"}


def test_changelog_starts_with_the_version_of_pyproject() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert next(h for h in headings if h != "Unreleased") == PROJECT["version"]


def test_constraints_pin_exact_versions_without_a_build_tag() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\d.]+(post\d+)?", str(pin.specifier)) for pin in pins)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): number for name, _, number in (line.partition("==") for line in lines) if number}


def extras_of_make() -> set[str]:
    lists = re.findall(r'-e "\.\[(.+?)\]"', (ROOT / "Makefile").read_text(encoding="utf-8"))
    return {extra for names in lists for extra in names.split(",")}


def test_make_installs_what_the_tests_need() -> None:
    assert extras_of_make() == EXTRAS.keys() - {"all", "server", "ui", "otel"}


def test_constraints_pin_and_satisfy_all_that_make_installs() -> None:
    wanted = [
        *map(Requirement, PROJECT["dependencies"]),
        *(Requirement(r) for e in extras_of_make() for r in EXTRAS[e]),
    ]
    for requirement in (r for r in wanted if r.name != "llmkit"):
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement
    assert installed_with(wanted) - {"llmkit"} - NOT_PINNED <= pins().keys()


NOT_PINNED = {"pip", "setuptools"}
"""What an environment has of its own accord."""
