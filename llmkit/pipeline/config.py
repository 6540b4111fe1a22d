"""A pipeline as a YAML file: what to read, which steps, where to write.

Owns the form of the file and its checks; steps come from `llmkit.tasks` or from the user's own code by name. What may
stand in it is in docs/pipelines.md.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from llmkit import tasks
from llmkit.errors import PipelineError, did_you_mean
from llmkit.pipeline.functions import Route, route, step
from llmkit.pipeline.pipeline import Joinable, Pipeline
from llmkit.pipeline.ray import RayRunner
from llmkit.registry import load
from llmkit.tasks.step import Step

_KEYS = ("name", "source", "sink", "journal", "batch_size", "runner", "steps")
_KINDS = ("task", "function", "route", "chain")


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What a file says.

    Attributes:
        pipeline: the steps, joined.
        source: a file of rows; None where the file leaves it out.
        sink: where results go; None where the file leaves it out.
        settings: further arguments of `Pipeline.run`.
    """

    pipeline: Pipeline
    source: Path | None
    sink: Path | None
    settings: Mapping[str, Any]


def load_config(path: str | Path) -> PipelineConfig:
    """Read a pipeline's file. Imports the user's code that it names, and loads no model.

    Raises:
        PipelineError: it cannot be read or says something that cannot be; the message has the place.
    """
    path = Path(path)
    document = _document(path)
    _refuse_unknown(document, _KEYS, str(path))
    pipeline = Pipeline(str(document.get("name", path.stem)))
    for following in _list(document.get("steps"), f"{path}: steps"):
        pipeline = pipeline >> _joinable(following, path)
    settings = {key: document[key] for key in ("batch_size",) if key in document}
    if "journal" in document:
        settings["journal"] = document["journal"] and _beside(path, document["journal"])
    if "runner" in document:
        settings["runner"] = _runner(document["runner"], path)
    return PipelineConfig(pipeline, _place(document, "source", path), _place(document, "sink", path), settings)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PipelineError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is not YAML: {error}") from error
    return _mapping(document, str(path))


def _joinable(entry: object, path: Path) -> Joinable:
    """One entry of `steps`: a list is branches, a mapping is a step, a route or a chain of steps."""
    if isinstance(entry, list):
        return [_joinable(one, path) for one in cast("list[object]", entry)]
    given = dict(_mapping(entry, f"{path}: a step"))
    kinds = [kind for kind in _KINDS if kind in given]
    if len(kinds) != 1:
        raise PipelineError(f"{path}: a step must have one of {', '.join(_KINDS)}, got {given!r}")
    what = given.pop(kinds[0])
    if kinds[0] == "task":
        return _task(str(what), given, path)
    if kinds[0] == "chain":
        _refuse_unknown(given, (), f"{path}: a chain")
        steps = [_joinable(one, path) for one in _list(what, f"{path}: chain")]
        return functools.reduce(Pipeline.__rshift__, steps, Pipeline())
    return _function(kinds[0], str(what), given, path)


def _task(name: str, given: dict[str, Any], path: Path) -> Step:
    """A step of a class: one of `llmkit.tasks`, or the user's own as `file.py:Class` or `package.module:Class`."""
    known = [n for n in tasks.__all__ if isinstance(getattr(tasks, n), type) and issubclass(getattr(tasks, n), Step)]
    if ":" not in name and name not in known:
        raise PipelineError(f"{path}: there is no task {name!r}{did_you_mean(name, known)}; own ones are file.py:Class")
    made = _named(name, path) if ":" in name else getattr(tasks, name)
    if not isinstance(made, type) or not issubclass(made, Step):
        raise PipelineError(f"{path}: {name} must be a class of steps, got {made!r}")
    if issubclass(made, tasks.Task):
        given["llm"] = _model(given.get("llm"), path)
    return cast("Callable[..., Step]", made)(**given)


def _model(given: object, path: Path) -> Callable[[], Any]:
    """A model to load: nothing for the embedded one, a name, or a mapping with `model` and parameters."""
    if given is None or isinstance(given, str):
        return functools.partial(load, given)
    parameters = dict(_mapping(given, f"{path}: llm"))
    return functools.partial(load, parameters.pop("model", None), **parameters)


def _function(kind: str, name: str, given: dict[str, Any], path: Path) -> Step | Route:
    function: Any = _named(name, path)
    if not callable(function):
        raise PipelineError(f"{path}: {name} must be a function, got {function!r}")
    _refuse_unknown(given, ("name",) if kind == "route" else ("name", "reads", "writes"), f"{path}: {name}")
    make = route if kind == "route" else step
    return make(cast("Any", function), **given)


def _named(name: str, path: Path) -> Any:
    """What `file.py:name` (beside the YAML file) or `package.module:name` stands for."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise PipelineError(f"{path}: code must be named as file.py:name or package.module:name, got {name!r}")
    try:
        module = _file_module(path.parent / module_name) if module_name.endswith(".py") else _module(module_name)
        return getattr(module, attribute)
    except (ImportError, OSError, AttributeError) as error:
        raise PipelineError(f"{path}: {name} cannot be imported: {error}") from error


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _file_module(file: Path) -> Any:
    """A file as a module of its stem's name, imported once."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    present = sys.modules.get(file.stem)
    if present is not None and Path(str(present.__file__)).resolve() == file.resolve():
        return present
    if spec is None or spec.loader is None or present is not None:
        raise ImportError(f"{file} is no module, or another module is named {file.stem}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module


def _runner(given: object, path: Path) -> Literal["local", "ray"] | RayRunner:
    if given in ("local", "ray"):
        return given
    settings = _mapping(given, f"{path}: runner")
    _refuse_unknown(settings, ("ray",), f"{path}: runner")
    own = dict(_mapping(settings["ray"], f"{path}: runner: ray"))
    _refuse_unknown(own, ("concurrency", "num_cpus", "num_gpus", "in_flight"), f"{path}: runner: ray")
    return RayRunner(**own)


def _place(document: Mapping[str, Any], key: str, path: Path) -> Path | None:
    return None if document.get(key) is None else _beside(path, document[key])


def _beside(path: Path, given: object) -> Path:
    """A path in the file, relative to the file's folder."""
    if not isinstance(given, str):
        raise PipelineError(f"{path}: a file must be named by text, got {given!r}")
    return path.parent / given


def _mapping(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise PipelineError(f"{where} must be a mapping, got {given!r}")
    return {str(key): value for key, value in cast("dict[object, Any]", given).items()}


def _list(given: object, where: str) -> list[object]:
    if not isinstance(given, list) or not given:
        raise PipelineError(f"{where} must be a list with an entry, got {given!r}")
    return cast("list[object]", given)


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            listed = ", ".join(known) or "nothing else"
            raise PipelineError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known: {listed}")
