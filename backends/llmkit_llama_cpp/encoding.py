"""From a request's prompt to token ids: chat template or join, special tokens, and back to text.

It knows a vocabulary and templates, and nothing of how a model runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

from jinja2 import TemplateError, meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmkit.errors import InvalidRequest, UnsupportedFeature
from llmkit.history import fold_system
from llmkit.types import Message, Request, TokenLogprob, TopLogprob, joined
from llmkit_llama_cpp.model import GGUFModel
from llmkit_llama_cpp.sampling import ScoredToken

_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = ("bos", "eos", "pad", "sep", "mask")
_RESERVED = ("messages", "tools", "add_generation_prompt", *(f"{kind}_token" for kind in _SPECIAL))


class _GenerationBlocks(Extension):
    """Reads `{% generation %}`, by which transformers' templates mark an assistant's text, as its contents."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PromptEncoder:
    """Encodes prompts for one model, and decodes its tokens. Safe to use from many threads.

    Args:
        model: its vocabulary, and the chat templates in its metadata.
    """

    def __init__(self, model: GGUFModel) -> None:
        self._model = model
        self._environment = _environment()

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template."""
        return _TEMPLATE in self._model.metadata

    def encode(self, request: Request) -> list[int]:
        """The prompt's token ids.

        Raises:
            InvalidRequest: the prompt has no tokens, or the template refuses it.
            UnsupportedFeature: tools or template arguments without a template, or one that ignores them.
        """
        ids = self._templated(request) if self.uses_template(request) else self._plain(request)
        ids = _with_bos(ids, request.params.bos_token_id, self._model.special("bos"))
        if not ids:
            raise InvalidRequest(f"the prompt has no tokens: {request.prompt!r}")
        return ids

    def uses_template(self, request: Request) -> bool:
        """Whether this request goes through the chat template."""
        return self.has_template and not (request.raw and isinstance(request.prompt, str))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, control tokens left out; bytes that are no character yet become replacement characters."""
        return b"".join(map(self._model.piece, token_ids)).decode(errors="replace")

    def spelt(self, token: ScoredToken) -> TokenLogprob:
        """A token and its log-probabilities with texts and bytes; control tokens are spelt as the vocabulary does."""
        own = self._top(token.token_id, token.logprob)
        return TokenLogprob(own.token, own.logprob, own.bytes, tuple(self._top(*pair) for pair in token.likeliest))

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        spelling = self._model.spelling(token_id)
        return TopLogprob(spelling.decode(errors="replace"), logprob, tuple(spelling))

    def _plain(self, request: Request) -> list[int]:
        if request.tools or request.template_args:
            raise UnsupportedFeature("tools and template_args need a chat template, and none is used here")
        return self._model.tokenize(joined(request.prompt), add_special=True)

    def _templated(self, request: Request) -> list[int]:
        prompt = (Message("user", request.prompt),) if isinstance(request.prompt, str) else request.prompt
        source = self._source(request)
        self._check_template_args(source, request)
        try:
            text = self._render(source, prompt, request)
        except (TemplateError, TypeError) as error:
            text = self._render_without_system(source, prompt, request, error)
        # The template writes the special tokens itself; the tokenizer must not add a second BOS.
        return self._model.tokenize(text, add_special=False)

    def _source(self, request: Request) -> str:
        """The template; a model may have one of its own for tools."""
        metadata = self._model.metadata
        for_tools = metadata.get(f"{_TEMPLATE}.tool_use") if request.tools else None
        return for_tools or metadata[_TEMPLATE]

    def _check_template_args(self, source: str, request: Request) -> None:
        """Refuse what the template would ignore, or what is not the caller's to set."""
        clash = sorted(set(request.template_args) & set(_RESERVED))
        if clash:
            raise InvalidRequest(f"template_args must not set {clash[0]!r}; llmkit sets it")
        given = {*request.template_args, *(["tools"] if request.tools else [])}
        ignored = sorted(given - self._variables(source)) if given else []
        if ignored:
            raise UnsupportedFeature(f"the model's chat template makes no use of {ignored[0]!r}")

    def _variables(self, source: str) -> set[str]:
        """Names that the template takes from outside."""
        try:
            return meta.find_undeclared_variables(self._environment.parse(source))
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template cannot be read: {error}") from error

    def _render(self, source: str, messages: Sequence[Message], request: Request) -> str:
        return self._environment.from_string(source).render(
            messages=[message.to_dict() for message in messages],
            tools=[dict(tool) for tool in request.tools] or None,
            add_generation_prompt=True,
            **self._special_tokens,
            **request.template_args,
        )

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        return {f"{kind}_token": self._model.name_of(self._model.special(kind)) for kind in _SPECIAL}

    def _render_without_system(
        self, source: str, messages: Sequence[Message], request: Request, refusal: Exception
    ) -> str:
        """For a template that refuses system messages: their text opens the first user turn."""
        folded = fold_system(messages)
        try:
            return self._render(source, folded, request)
        except (TemplateError, TypeError):
            raise InvalidRequest(f"the model's chat template refuses this conversation: {refusal}") from refusal


def _environment() -> ImmutableSandboxedEnvironment:
    """Where templates run, as transformers sets it up: they are code from the model's maker, so nothing is in reach."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def now(form: str) -> str:
        return datetime.now().strftime(form)

    extensions = ["jinja2.ext.loopcontrols", _GenerationBlocks]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    names: dict[str, Any] = environment.globals
    names.update(raise_exception=refuse, strftime_now=now)
    environment.filters["tojson"] = as_json
    return environment


def _with_bos(ids: list[int], wanted: int | None, own: int | None) -> list[int]:
    """The prompt beginning with the wanted token, in place of the tokenizer's own where that stands first."""
    if wanted is None or ids[:1] == [wanted]:
        return ids
    return [wanted, *(ids[1:] if own is not None and ids[:1] == [own] else ids)]
