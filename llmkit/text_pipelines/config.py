"""The settings of a text pipeline: sections that are checked when they are set, and their form as YAML.

It knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from llmkit.errors import ParameterError
from llmkit.registry import EMBEDDED_MODEL


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", validate_assignment=True)


class ModelSection(_Section):
    """Which model, and the tokens that prompt and new text may have together."""

    name: str = EMBEDDED_MODEL
    sequence_length: PositiveInt = 512


class ExecutionSection(_Section):
    """How many prompts are worked on at once."""

    micro_batch_size: PositiveInt = 12


class InferenceSection(_Section):
    """How many tokens are generated at most; a text may end before."""

    output_length: PositiveInt = 20


class PipelineConfig(_Section):
    """The settings of a pipeline. Each can be changed in place; a bad value is refused and changes nothing.

    Raises:
        pydantic.ValidationError: a value breaks its rule, or a name is none of these.
    """

    model: ModelSection = Field(default_factory=ModelSection)
    execution: ExecutionSection = Field(default_factory=ExecutionSection)
    inference: InferenceSection = Field(default_factory=InferenceSection)

    @classmethod
    def preset(cls, name: str) -> PipelineConfig:
        """The settings of that name that ship with llmkit: `tiny`, `gpt-j`, `gpt-j-mnli`.

        Raises:
            ParameterError: there are none of that name.
        """
        shipped = files("llmkit.text_pipelines").joinpath("presets.yml").read_text(encoding="utf-8")
        return cls._of(_parsed(shipped, "presets.yml"), name, "presets.yml")

    @classmethod
    def load(cls, path: str | os.PathLike[str], preset: str | None = None) -> PipelineConfig:
        """Settings from a YAML file: the preset of that name in it, or the file as a whole.

        Raises:
            ParameterError: it is not YAML, has no such preset, or a setting breaks its rule.
            OSError: it cannot be read.
        """
        where = os.fspath(path)
        return cls._of(_parsed(Path(path).read_text(encoding="utf-8"), where), preset, where)

    def dumps_yaml(self) -> str:
        """The settings as YAML, as `load` reads them."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False)

    @classmethod
    def _of(cls, found: Mapping[str, Any], preset: str | None, where: str) -> PipelineConfig:
        if preset is not None and preset not in found:
            raise ParameterError(f"{where} has no preset {preset!r}; it has {', '.join(map(str, found)) or 'none'}")
        try:
            return cls.model_validate(found if preset is None else found[preset])
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ParameterError(f"{where}: {problems}") from None


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"{where} is not YAML: {error}") from None
    if not isinstance(found, Mapping):
        raise ParameterError(f"{where} must be a mapping, got {type(found).__name__}")
    return cast("Mapping[str, Any]", found)
