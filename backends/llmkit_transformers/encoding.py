"""From a request's prompt to token ids: chat template or join, special tokens, and back to text.

It knows a tokenizer and no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmkit.errors import InvalidRequest, UnsupportedFeature
from llmkit.history import fold_system
from llmkit.types import Message, Request

_RESERVED = ("messages", "tools", "add_generation_prompt", "tokenize", "conversation", "chat_template", "return_dict")


class _GenerationBlocks(Extension):
    """Reads `{% generation %}`, by which transformers' templates mark an assistant's text, as its contents."""

    tags: ClassVar[set[str]] = {"generation"}  # pyright: ignore[reportIncompatibleVariableOverride]

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Encodes prompts for one tokenizer of transformers.

    Safe to use from many threads: a fast tokenizer's encoding is, and nothing here changes it.
    """

    tokenizer: Any

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(self.tokenizer.chat_template)

    def encode(self, request: Request) -> list[int]:
        """The prompt's token ids.

        Raises:
            InvalidRequest: the prompt has no tokens, or the template refuses it.
            UnsupportedFeature: tools or template arguments without a template.
        """
        ids = self._templated(request) if self.uses_template(request) else self._plain(request)
        ids = _with_bos(ids, request.params.bos_token_id, self.tokenizer.bos_token_id)
        if not ids:
            raise InvalidRequest(f"the prompt has no tokens: {request.prompt!r}")
        return ids

    def uses_template(self, request: Request) -> bool:
        """Whether this request goes through the chat template."""
        return self.has_template and not (request.raw and isinstance(request.prompt, str))

    def _plain(self, request: Request) -> list[int]:
        if request.tools or request.template_args:
            raise UnsupportedFeature("tools and template_args need a chat template, and none is used here")
        prompt = request.prompt
        text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
        return self._ids(text)

    def _templated(self, request: Request) -> list[int]:
        prompt = (Message("user", request.prompt),) if isinstance(request.prompt, str) else request.prompt
        self._check_template_args(request)
        try:
            text = self._render(prompt, request)
        except TemplateError as error:
            text = self._render_without_system(prompt, request, error)
        # The template writes the special tokens itself; the tokenizer must not add a second BOS.
        return self._ids(text, add_special_tokens=False)

    def _check_template_args(self, request: Request) -> None:
        """Refuse what the template would ignore, or what is not the caller's to set."""
        clash = sorted(set(request.template_args) & set(_RESERVED))
        if clash:
            raise InvalidRequest(f"template_args must not set {clash[0]!r}; llmkit sets it")
        given = {*request.template_args, *(["tools"] if request.tools else [])}
        ignored = sorted(given - self._template_variables()) if given else []
        if ignored:
            raise UnsupportedFeature(f"the model's chat template makes no use of {ignored[0]!r}")

    def _template_variables(self) -> set[str]:
        """Names that the template takes from outside; of several templates, all of theirs."""
        templates: str | dict[str, str] = self.tokenizer.chat_template
        sources = [templates] if isinstance(templates, str) else templates.values()
        parse = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]).parse
        return {name for source in sources for name in meta.find_undeclared_variables(parse(source))}

    def _ids(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if _encodes_as_usual(self.tokenizer):
            encode = self.tokenizer.backend_tokenizer.encode_batch_fast
            return encode([text], add_special_tokens=add_special_tokens)[0].ids
        # Not verbose: a long text is fitted or refused by the window later on.
        return self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]

    def _render(self, messages: Sequence[Message], request: Request) -> str:
        return self.tokenizer.apply_chat_template(
            [_for_template(message) for message in messages],
            tools=[dict(tool) for tool in request.tools] or None,
            add_generation_prompt=True,
            tokenize=False,
            **request.template_args,
        )

    def _render_without_system(self, messages: Sequence[Message], request: Request, refusal: TemplateError) -> str:
        """For a template that refuses system messages: their text opens the first user turn."""
        folded = fold_system(messages)
        try:
            return self._render(folded if folded != tuple(messages) else messages, request)
        except TemplateError:
            raise InvalidRequest(f"the model's chat template refuses this conversation: {refusal}") from refusal

    def decoder(self) -> Callable[[Sequence[int]], str]:
        """A function from token ids to text, special tokens left out; called twice for every token."""
        decode = self.tokenizer.decode
        if _decodes_as_usual(self.tokenizer):
            return partial(self.tokenizer.backend_tokenizer.decode, skip_special_tokens=True)
        return lambda ids: decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _encodes_as_usual(tokenizer: Any) -> bool:
    """Whether encoding is left to the `tokenizers` library, which without the places of tokens takes half the time."""
    kind, usual = cast("Any", type(tokenizer)), cast("Any", PreTrainedTokenizerFast)
    if not issubclass(kind, usual) or hasattr(kind, "_switch_to_input_mode"):
        return False
    if (kind.__call__, kind._encode_plus) != (usual.__call__, usual._encode_plus):
        return False
    backend = tokenizer.backend_tokenizer
    is_whole = backend.truncation is None and backend.padding is None
    return is_whole and bool(backend.encode_special_tokens) == bool(tokenizer.split_special_tokens)


def _decodes_as_usual(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding is left to the `tokenizers` library, which alone takes a fifth of the time."""
    kind, usual = cast("Any", type(tokenizer)), cast("Any", PreTrainedTokenizerFast)
    return issubclass(kind, usual) and kind.decode is usual.decode and kind._decode is usual._decode


def _for_template(message: Message) -> dict[str, Any]:
    """The message as templates expect it: arguments of calls as objects, where OpenAI's wire has JSON in a string."""
    data = message.to_dict()
    for call in data.get("tool_calls", ()):
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):  # pyright: ignore[reportUnknownMemberType]
            call["function"] = {**function, "arguments": _parsed(cast("str", function["arguments"]))}
    return data


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _with_bos(ids: list[int], wanted: int | None, own: int | None) -> list[int]:
    """The prompt beginning with the wanted token, in place of the tokenizer's own where that stands first."""
    if wanted is None or ids[:1] == [wanted]:
        return ids
    return [wanted, *(ids[1:] if own is not None and ids[:1] == [own] else ids)]
