"""What a step's results depend on besides the row: class, code, parameters and the model's fingerprint, as 16 bytes.

`Step.identity` describes the step itself. This adds the code that its functions reach in the user's own modules, since
a changed helper changes results as much. It knows no rows and no files.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from llmkit.pipeline.keys import digest
from llmkit.tasks.step import Step

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_OWN_ROOTS = ("llmkit", "llmkit_transformers", "llmkit_llama_cpp", "llmkit_openai")


def code_signature(step: Step) -> bytes:
    """16 bytes that change with the step's class, parameters and code. Loads nothing.

    Not seen: what code reads from files, the environment or the network while it runs.

    Raises:
        ParameterError: a parameter cannot be described reliably.
    """
    # Of the class Step, whatever the step is: a task's own would load its model.
    return digest((_canonical(Step.identity(step)) + "\n".join(reached_code(step))).encode())


def model_signature(step: Step) -> bytes:
    """What changes with the step's model: its class, name, parameters and fingerprint. Loads it."""
    return digest(_canonical(step.identity().get("model")).encode())


def _canonical(identity: object) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"))


def reached_code(step: Step) -> list[str]:
    """A line for everything of the user's own that the step's code may use: functions, classes, modules, constants."""
    lines: dict[str, None] = {}
    waiting: list[object] = [type(step), *_callables(step.parameters)]
    met: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) not in met:
            met.add(id(thing))
            line, further = _described(thing)
            lines[line] = None
            waiting += further
    return sorted(lines)


def _callables(parameters: Mapping[str, object]) -> Iterator[object]:
    """The functions among the parameters; the model's is left out, for its fingerprint says more."""
    for name, value in parameters.items():
        values = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,)
        yield from (item for item in values if name != "llm" and callable(item))


def _described(thing: object) -> tuple[str, list[object]]:
    """One thing in a line, and what else it uses."""
    if isinstance(thing, functools.partial):
        call = cast("functools.partial[Any]", thing)
        return "partial", [call.func, *call.args, *call.keywords.values()]
    if isinstance(thing, MethodType):
        return "method", [thing.__func__, type(thing.__self__)]
    if isinstance(thing, (FunctionType, type, ModuleType)) and _is_installed(thing):
        return f"installed {_name(thing)} {_version(thing)}", []
    if isinstance(thing, FunctionType):
        return _function(thing)
    if isinstance(thing, type):
        members = [_unwrapped(member) for member in vars(thing).values()]
        own = [member for member in members if isinstance(member, FunctionType)]
        return f"class {_name(thing)}", [*own, *thing.__bases__]
    if isinstance(thing, ModuleType):
        return f"module {thing.__name__} {digest(_file_bytes(thing)).hex()}", []
    return _constant(thing), [] if thing is None or isinstance(thing, (str, int, float)) else [type(thing)]


def _function(function: FunctionType) -> tuple[str, list[object]]:
    wrapped = inspect.unwrap(function)
    scope = inspect.getclosurevars(wrapped) if isinstance(wrapped, FunctionType) else None
    used: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if scope is not None:
        used += [*scope.nonlocals.values(), *(wrapped.__globals__[n] for n in _names(wrapped.__code__, wrapped))]
    if wrapped is not function:
        used.append(wrapped)
    return f"function {_name(function)} {_flat(function.__code__)}", used


def _names(code: CodeType, function: FunctionType) -> list[str]:
    """The globals that a function and the functions in it name."""
    nested = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const, function)]
    return sorted({*nested, *(name for name in code.co_names if name in function.__globals__)})


def _flat(code: CodeType) -> str:
    """Instructions and constants without line numbers: moving or commenting a function changes nothing."""
    return f"{code.co_code.hex()} {code.co_names} {[_stable(const) for const in code.co_consts]}"


def _stable(constant: object) -> str:
    if isinstance(constant, CodeType):
        return _flat(constant)
    if isinstance(constant, frozenset):  # its order differs from process to process
        return str(sorted(map(repr, cast("frozenset[object]", constant))))
    return repr(constant)


def _constant(value: object) -> str:
    """A value by its text; of an object that shows only its address, its type."""
    if isinstance(value, (set, frozenset)):
        return str(sorted(map(repr, cast("set[object]", value))))
    return _ADDRESS.sub("", repr(value))


def _unwrapped(member: object) -> object:
    if isinstance(member, property):
        return member.fget
    return getattr(cast("Any", member), "__func__", member)


def _name(thing: Callable[..., Any] | type | ModuleType) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_installed(thing: FunctionType | type | ModuleType) -> bool:
    """Whether it comes with Python, with an installed package or with llmkit, which change by versions."""
    module = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    root = module.partition(".")[0]
    return root in _OWN_ROOTS or root in sys.stdlib_module_names - {"__main__"} or _is_in_packages(root)


@functools.cache
def _is_in_packages(root: str) -> bool:
    if root == "__main__":
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    folders = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    return any(folder in Path(place).resolve().parents for place in places if place for folder in folders)


def _version(thing: FunctionType | type | ModuleType) -> str:
    root = _name(thing).partition(".")[0]
    return str(getattr(sys.modules.get(root), "__version__", ""))


def _file_bytes(module: ModuleType) -> bytes:
    try:
        return Path(module.__file__ or "").read_bytes()
    except OSError:
        return b""
