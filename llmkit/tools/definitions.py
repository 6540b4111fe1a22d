"""What a model may call: functions, pydantic models and JSON schemas, as one kind of thing.

It makes schemas, and calls a function with checked arguments; it does not know how a model asks for a call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ArgsKwargs, to_json

from llmkit.errors import InvalidRequest, ToolError
from llmkit.structured.json_schema import checked_schema

ToolLike: TypeAlias = "Tool | Callable[..., Any] | type[BaseModel] | Mapping[str, Any]"

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGS = re.compile(r"^(?:Args|Arguments|Parameters):[ \t]*\n(?P<lines>(?:[ \t]+.*\n?|\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(
    r"^(?P<indent>[ \t]+)(?P<name>\w+)(?: *\([^)]*\))?: *(?P<text>.+(?:\n(?P=indent)[ \t]+.+)*)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that a model may call. Make one with `of`.

    Attributes:
        name: by which the model calls it.
        schema: what the chat template gets: name, description and parameters, as OpenAI shapes them.
        function: what a call runs; None where there is only a schema.
        binder: turns checked JSON into the function's arguments.
    """

    name: str
    schema: Mapping[str, Any]
    function: Callable[..., Any] | None = None
    binder: TypeAdapter[Any] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, tool: ToolLike) -> Tool:
        """A tool from a function with type hints, a pydantic model, or a schema as OpenAI shapes it.

        A function's docstring describes it, and its `Args:` section the parameters.

        Raises:
            InvalidRequest: it is none of these, or no schema can be made of it.
        """
        if isinstance(tool, Tool):
            return tool
        if isinstance(tool, Mapping):
            return _from_schema(cast("Mapping[str, Any]", tool))
        if isinstance(tool, type):
            return _from_model(tool)
        if callable(tool):
            return _from_function(tool)
        raise InvalidRequest(f"a tool must be a function, a pydantic model or a schema, got {tool!r}")

    @property
    def is_async(self) -> bool:
        """Whether its function has to be awaited."""
        return inspect.iscoroutinefunction(self.function)

    def run(self, arguments: Mapping[str, Any]) -> str:
        """What the function gives, as the model is told: a string as it is, anything else as JSON.

        A `ToolError` is told to the model, too, and so are arguments that break a rule that no schema can express;
        every other exception of the function comes through.
        """
        try:
            return _told(self._function(**self._bound(arguments)))
        except ToolError as error:
            return f"error: {error}"

    async def arun(self, arguments: Mapping[str, Any]) -> str:
        """`run` without blocking the event loop; an async function is awaited, any other has a thread."""
        if not self.is_async:
            return await asyncio.to_thread(self.run, arguments)
        try:
            return _told(await self._function(**self._bound(arguments)))
        except ToolError as error:
            return f"error: {error}"

    @property
    def _function(self) -> Callable[..., Any]:
        if self.function is None:
            raise InvalidRequest(f"the tool {self.name!r} is a schema without a function, so it cannot be run")
        return self.function

    def _bound(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.binder is None:
            return dict(arguments)
        try:
            return self.binder.validate_python(ArgsKwargs((), dict(arguments)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ToolError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def as_tools(tools: Sequence[ToolLike]) -> tuple[Tool, ...]:
    """All tools, each with a name of its own.

    Raises:
        InvalidRequest: one is no tool, two have one name, or it is not a list.
    """
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"tools must be a list of functions or schemas, got {type(tools).__name__}")
    made = tuple(Tool.of(tool) for tool in tools)
    names = [tool.name for tool in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"tools must have different names, got {twice!r} twice")
    return made


def _from_schema(schema: Mapping[str, Any]) -> Tool:
    """A schema stays as it is, since the template may know more of its keys than we do."""
    inner = schema.get("function", schema)
    name = cast("Mapping[str, Any]", inner).get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"a tool's schema must have a name, got {dict(schema)!r}")
    checked_schema(cast("Mapping[str, Any]", inner).get("parameters", {}))
    return Tool(name, schema)


def _from_model(model: type[Any]) -> Tool:
    if not issubclass(model, BaseModel):
        raise InvalidRequest(f"a tool must be a function, a pydantic model or a schema, got the class {model.__name__}")
    parameters = model.model_json_schema(schema_generator=_Untitled)
    description = parameters.pop("description", "")
    return Tool(model.__name__, _shaped(model.__name__, description, parameters))


def _from_function(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"a tool's name must have letters, digits, _ and - only, got {name!r}")
    binder = _binder(name, function)
    parameters = _parameters(name, binder)
    description, arguments = _described(inspect.getdoc(function) or "")
    for parameter, text in arguments.items():
        if parameter in parameters.get("properties", {}):
            parameters["properties"][parameter].setdefault("description", text)
    return Tool(name, _shaped(name, description, parameters), function, binder)


def _binder(name: str, function: Callable[..., Any]) -> TypeAdapter[Any]:
    """Validates a function's arguments and gives them back by name, the function itself not being called."""
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidRequest(f"a tool's parameters must have names, got {parameter} in {name}")
        if parameter.annotation is parameter.empty:
            raise InvalidRequest(f"a tool's parameters must have type hints, got {parameter} in {name}")

    def bind(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return signature.bind(*args, **kwargs).arguments

    try:
        return TypeAdapter[Any](cast("Any", functools.wraps(function)(bind)))
    except (PydanticUserError, NameError, TypeError) as error:
        raise InvalidRequest(f"no schema can be made of the tool {name}: {error}") from error


def _parameters(name: str, binder: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        return binder.json_schema(schema_generator=_Untitled)
    except (PydanticUserError, PydanticInvalidForJsonSchema) as error:
        raise InvalidRequest(f"no schema can be made of the tool {name}: {error}") from error


class _Untitled(GenerateJsonSchema):
    """Schemas without pydantic's titles, which repeat the names and cost the prompt tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _shaped(name: str, description: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _described(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's text up to its first section, and the texts of its arguments."""
    section = _ARGS.search(doc)
    found = _ARGUMENT.finditer(section["lines"]) if section else ()
    arguments = {match["name"]: " ".join(match["text"].split()) for match in found}
    before = re.split(r"^\w+:[ \t]*$", doc, maxsplit=1, flags=re.MULTILINE)[0]
    return before.strip(), arguments


def _told(result: object) -> str:
    return result if isinstance(result, str) else to_json(result).decode()
