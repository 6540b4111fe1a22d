"""Jinja templates over the columns of a row.

Templates run in a sandbox, since somebody else may have written them. A missing column is an error, not an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmkit.errors import InvalidRequest, ParameterError
from llmkit.tasks.step import Row


@lru_cache(maxsize=256)
def template(source: str) -> Template:
    """The template of this source, compiled once.

    Raises:
        ParameterError: it is not a string, or not a Jinja template.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not isinstance(source, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ParameterError(f"template must be a string, got {source!r}")
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        columns = meta.find_undeclared_variables(environment.parse(source))
        return Template(tuple(sorted(columns)), environment.from_string(source))
    except TemplateSyntaxError as error:
        raise ParameterError(f"template must be a Jinja template: {error}, got {source!r}") from error


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template.

    Attributes:
        columns: the variables that it reads and does not set itself, sorted.
    """

    columns: tuple[str, ...]
    _compiled: Any

    def render(self, row: Row) -> str:
        """The text for a row.

        Raises:
            InvalidRequest: a column is missing, or the template fails on this row.
        """
        from jinja2 import TemplateError

        try:
            return self._compiled.render(row)
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the template cannot be filled from this row: {error}") from error
