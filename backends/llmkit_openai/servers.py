"""What kinds of server there are: which parameters each honours, under which names, and what it must be told.

A server that does not know a field often ignores it without a word, so a kind lists only what its server is known to
act on. This module knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llmkit.capabilities import Capabilities
from llmkit_openai.constraints import AS_OBJECT, AS_RESPONSE_FORMAT, AS_STRUCTURED_OUTPUTS, Writers

ServerName: TypeAlias = Literal[
    "generic", "openai", "vllm", "llama-server", "llama-cpp-python", "transformers", "ollama", "tgi"
]

_ALIKE: Mapping[str, str] = {
    name: name for name in ("max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty")
}
_API: Mapping[str, str] = {**_ALIKE, "stop_token": "stop", "logprobs": "logprobs"}
_OUR_PART = frozenset({"do_sample", "num_return_sequences", "system_prompt", "role"})
"""Parameters that llmkit translates or carries out itself, so that every server honours them."""


@dataclass(frozen=True, slots=True)
class ServerKind:
    """How one kind of server is spoken to.

    Attributes:
        fields: the parameters that it acts on, and its names for them.
        neutral: values that say "nothing of the kind", where the server would otherwise use defaults of its own.
        fixed: fields that every body has.
        chat_max_tokens: its name for `max_tokens` in a chat.
        gives_n: it answers a request with as many choices as are asked for; others are asked once a choice.
        usage_on_request: it tells the usage of a stream if asked; others refuse the question or always tell.
        template_args: it passes `chat_template_kwargs` on to the chat template.
        tools: it passes tools on to the model.
        structured: the kinds of structured output that it has, and how each is asked for.
        structured_raw: it has them at the completions endpoint, too.
        packed: the field that holds the parameters as JSON in a string, where they travel so.
        max_concurrency: requests that it is given at once, where nobody says how many.
    """

    fields: Mapping[str, str] = field(default_factory=lambda: _API)
    neutral: Mapping[str, Any] = field(default_factory=lambda: {"top_p": 1.0})
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    chat_max_tokens: str = "max_tokens"
    gives_n: bool = False
    usage_on_request: bool = True
    template_args: bool = False
    tools: bool = True
    structured: Writers = field(default_factory=lambda: AS_RESPONSE_FORMAT)
    structured_raw: bool = False
    packed: str | None = None
    max_concurrency: int = 64

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of server can be asked for."""
        return Capabilities(
            params=frozenset(self.fields) | _OUR_PART,
            streaming=True,
            batching=True,
            tools=self.tools,
            structured=frozenset(self.structured),
            reproducible="no",
        )


KINDS: Mapping[str, ServerKind] = {
    "generic": ServerKind(),
    "openai": ServerKind(neutral={}, chat_max_tokens="max_completion_tokens", gives_n=True),
    "vllm": ServerKind(
        fields={**_API, "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"},
        neutral={"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
        gives_n=True,
        template_args=True,
        structured=AS_STRUCTURED_OUTPUTS,
        structured_raw=True,
    ),
    # Its penalties count the prompt, as `repetition_penalty` does, and as OpenAI's other two do not.
    "llama-server": ServerKind(
        fields={
            **{name: its for name, its in _API.items() if name not in ("frequency_penalty", "presence_penalty")},
            "top_k": "top_k",
            "min_p": "min_p",
            "typical_p": "typical_p",
            "repetition_penalty": "repeat_penalty",
        },
        neutral={"top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0},
        fixed={"repeat_last_n": -1},
        template_args=True,
    ),
    # Its `repeat_penalty`, 1.1 unless something else is said, overlooks the prompt, so it is not ours.
    "llama-cpp-python": ServerKind(
        fields={**_API, "top_k": "top_k", "min_p": "min_p"},
        neutral={"top_p": 1.0, "top_k": 0, "min_p": 0.0},
        fixed={"repeat_penalty": 1.0},
        structured=AS_OBJECT,
        # It breaks off what it is writing when the next request comes, unless started with --interrupt_requests false.
        max_concurrency=1,
    ),
    # Its `temperature` is ignored unless the model's own config samples, and its `frequency_penalty` is another one.
    "transformers": ServerKind(
        fields={
            "max_tokens": "max_new_tokens",
            "seed": "seed",
            "stop_token": "stop",
            "do_sample": "do_sample",
            **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")},
        },
        neutral={"top_p": 1.0, "top_k": 0, "typical_p": 1.0},
        usage_on_request=False,
        template_args=True,
        structured={},
        packed="generation_config",
        # A request's seed is set for the whole process when the request arrives, not when its turn comes.
        max_concurrency=1,
    ),
    "ollama": ServerKind(),
    "tgi": ServerKind(structured={}),
}
"""Every kind by its name; `generic` is what all servers of the API have in common."""
