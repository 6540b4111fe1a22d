"""The options that choose a model and its parameters, shared by the commands that run one, and loading what they say.

It knows options and names; how the text of a `-p` becomes a value is in `values`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from llmkit.cli.terminal import working
from llmkit.cli.values import once_each, parsed
from llmkit.errors import UnknownParameter
from llmkit.registry import EMBEDDED_MODEL, backend_class, load, resolve_name
from llmkit.specs import ALIASES, SPECS

if TYPE_CHECKING:
    from llmkit.backend import BackendLLM

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options of a command; each field is one, and `None` leaves the matter to the model and the library."""

    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="As for llmkit.load; the embedded demo model if left out."),
    ] = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Most new tokens.")] = None
    temperature: Annotated[float | None, typer.Option(metavar="T", help="Above 0 samples; 0 is greedy.")] = None
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Sample from this much probability.")] = None
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Sample from the K likeliest tokens.")] = None
    seed: Annotated[int | None, typer.Option(metavar="N", help="The key of the random stream.")] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Text that ends the answer; may be given several times.")
    ] = None
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where the model runs: cpu, cuda:0, ...")] = None
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="Any parameter, or an option of the backend."),
    ] = None

    def values(self) -> dict[str, Any]:
        """Everything that was given, as keywords for `llmkit.load`.

        Raises:
            ParameterError: a value breaks its rule, or a parameter was given twice.
            typer.BadParameter: a `-p` without a name or a value.
        """
        names = (field.name for field in fields(self) if field.name not in ("model", "param"))
        given = {name: getattr(self, name) for name in names}
        given["system_prompt"] = given.pop("system")
        named = [(name, value) for name, value in given.items() if value not in (None, [])]
        return once_each([*named, *map(parsed, self.param or ())])


def takes_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each field of `ModelOptions` as an option; it receives them as one object, `options`."""
    hints = get_type_hints(ModelOptions, include_extras=True)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "options"]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(ModelOptions)
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options = ModelOptions(**{p.name: given.pop(p.name) for p in shared})
        command(options=options, **given)

    # typer reads both.
    vars(with_options)["__signature__"] = inspect.Signature([*own, *shared])
    with_options.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
    return with_options


def open_model(model: str | None, values: Mapping[str, Any]) -> BackendLLM:
    """The model with its parameters, loaded while a terminal shows that it is.

    Raises:
        LLMKitError: a name or a value is wrong, or the model cannot be had.
    """
    backend, _ = resolve_name(model)
    with working(f"Loading {model or EMBEDDED_MODEL} ..."):
        try:
            return load(model, **values)
        except UnknownParameter as error:
            # The backend compared the name with parameters alone; it may be a misspelt option of its own.
            raise UnknownParameter(error.name, [*SPECS, *ALIASES, *_own_options(backend)]) from error


def _own_options(backend: str) -> Iterable[str]:
    """The keywords that the constructors of a backend and its bases name."""
    for owner in backend_class(backend).__mro__:
        names = (p.name for p in inspect.signature(owner.__init__).parameters.values() if p.kind in _NAMED)
        yield from (name for name in names if name not in ("self", "model_name"))
