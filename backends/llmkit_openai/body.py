"""From a request to what is posted: the path, the JSON body, and one post or several for its choices.

It knows what kind of server there is, and no connection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.errors import ParameterError, UnsupportedFeature
from llmkit.params import GenerationParams
from llmkit.specs import SAMPLING_FILTERS
from llmkit.types import Message, Request
from llmkit_openai.servers import ServerKind

_SEED_BITS = 31
_FRAME = frozenset(
    {"model", "messages", "prompt", "stream", "stream_options", "n", "tools", "chat_template_kwargs", "top_logprobs"}
    | {"max_completion_tokens", "response_format", "structured_outputs"}
)
"""Fields that say what a request is, and are llmkit's to set."""


@dataclass(frozen=True, slots=True)
class Post:
    """One HTTP request.

    Attributes:
        request: index of the request it belongs to.
        choices: indices of the choices that it asks for.
        path: of the endpoint, below the base URL.
        body: what is posted, as JSON.
    """

    request: int
    choices: range
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BodyWriter:
    """Writes requests for one model on one server.

    Attributes:
        model: the server's name for it.
        kind: how the server is spoken to.
        extra: fields that go into every body as they are.

    Raises:
        ParameterError: an extra field is one that llmkit sets.
    """

    model: str
    kind: ServerKind
    extra: Mapping[str, Any]

    def __post_init__(self) -> None:
        taken = sorted({*_FRAME, *self.kind.fields.values(), *([self.kind.packed] if self.kind.packed else [])})
        clash = [name for name in taken if name in self.extra]
        if clash:
            raise ParameterError(f"extra_body must not set {clash[0]!r}, which is llmkit's to set")

    def posts(self, index: int, request: Request) -> list[Post]:
        """The posts whose answers are the choices of a request: one, or one a choice.

        Raises:
            UnsupportedFeature: the server cannot be asked for this.
        """
        n = request.params.n
        # vLLM refuses several greedy choices in one request.
        if n == 1 or (self.kind.gives_n and request.params.do_sample):
            return [Post(index, range(n), *self._written(request, request.params.seed, n))]
        return [
            Post(index, range(choice, choice + 1), *self._written(request, _seed_of(request.params.seed, choice), 1))
            for choice in range(n)
        ]

    def _written(self, request: Request, seed: int | None, n: int) -> tuple[str, dict[str, Any]]:
        raw = request.raw and isinstance(request.prompt, str)
        body: dict[str, Any] = {**self.kind.fixed, **self.extra, "model": self.model, "stream": True}
        body |= _raw_prompt(request) if raw else self._conversation(request)
        body |= self._parameters(request.params, seed, is_chat=not raw)
        if request.constraint is not None:
            if raw and not self.kind.structured_raw:
                raise UnsupportedFeature("structured output is for chats here; this server has none for raw prompts")
            body |= self.kind.structured[request.constraint.kind](request.constraint)
        if n > 1:
            body["n"] = n
        if self.kind.usage_on_request:
            body["stream_options"] = {"include_usage": True}
        return ("completions" if raw else "chat/completions"), body

    def _conversation(self, request: Request) -> dict[str, Any]:
        prompt = (Message("user", request.prompt),) if isinstance(request.prompt, str) else request.prompt
        body: dict[str, Any] = {"messages": [_message(message) for message in prompt]}
        if request.tools:
            body["tools"] = [dict(tool) for tool in request.tools]
        if request.template_args:
            if not self.kind.template_args:
                raise UnsupportedFeature(
                    "template_args reach the chat template on vllm, llama-server and transformers servers only; "
                    'if this is one, say so: server="vllm"'
                )
            body["chat_template_kwargs"] = dict(request.template_args)
        return body

    def _parameters(self, params: GenerationParams, seed: int | None, *, is_chat: bool) -> dict[str, Any]:
        fields = self.kind.fields
        shaping = {fields[name]: value for name, value in _in_effect(params, self.kind.neutral) if name in fields}
        body: dict[str, Any] = {self.kind.packed: json.dumps(shaping)} if self.kind.packed else shaping
        if is_chat and "max_tokens" in body:
            body[self.kind.chat_max_tokens] = body.pop("max_tokens")
        if seed is not None:
            body[fields["seed"]] = _folded(seed)
        if params.stop_strings:
            body[fields["stop_token"]] = list(params.stop_strings)
        if params.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": params.logprobs} if is_chat else {"logprobs": params.logprobs}
        return body


def _message(message: Message) -> dict[str, Any]:
    """A message as the API wants it, where the arguments of a call are JSON in a string."""
    data = message.to_dict()
    for call in data.get("tool_calls", ()):
        function = call.get("function", {})
        if not isinstance(function.get("arguments", ""), str):
            call["function"] = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return data


def _raw_prompt(request: Request) -> dict[str, Any]:
    if request.tools or request.template_args:
        raise UnsupportedFeature("tools and template_args need a chat template, and a raw prompt goes without")
    return {"prompt": request.prompt}


def _in_effect(params: GenerationParams, neutral: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What shapes the next token: nothing is left to defaults of the server that can be said to it."""
    values = {**neutral, **dict(params)}
    for name in ("seed", "stop_token", "logprobs"):
        values.pop(name, None)
    if params.do_sample:
        values.setdefault("temperature", 1.0)
    else:
        values = {name: value for name, value in values.items() if name not in SAMPLING_FILTERS}
        values["temperature"] = 0.0
    yield from values.items()


def _seed_of(seed: int | None, choice: int) -> int | None:
    """The seed of a choice that is asked for singly: the request's own for the first, unrelated ones for the others."""
    if seed is None or choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _folded(seed: int) -> int:
    """A seed in the range that every server takes; one that is in it stays as it is."""
    return seed if seed < 2**_SEED_BITS else (seed ^ (seed >> 32)) % 2**_SEED_BITS
