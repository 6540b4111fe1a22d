"""Every error llmkit raises, as one tree.

LLMKitError
├── ParameterError (ValueError)            a value breaks its rule, or two values contradict each other
├── UnknownParameter (TypeError)           no such parameter; the nearest name is in the message
├── MisspeltAttribute (AttributeError)     set on a model, and a parameter's name but for a slip
├── UnsupportedParameter (ValueError)      the backend cannot honour a parameter
├── UnsupportedFeature (ValueError)        the backend cannot do what was asked (images, tools without a template)
├── InvalidRequest (ValueError)            an empty task, an unknown role, a malformed message
├── InvalidConstraint (ValueError)         a schema, regex, choice or grammar that cannot be compiled
├── StructuredOutputInvalid (ValueError)   a text that does not fit what was asked of it
│   └── StructuredOutputIncomplete         ... because its tokens ran out
├── ToolError (RuntimeError)               raised by a tool: its message is the tool's answer to the model
├── ToolRoundsExceeded (RuntimeError)      a model that still calls tools after the rounds that it may have
├── ContextLengthExceeded (ValueError)     the prompt leaves no room to generate
├── CacheBudgetExceeded (ValueError)       a request whose keys and values can never fit in the budget
├── QueueFull (RuntimeError)               as many requests wait as may; asked not to wait for a place
├── ModelClosed (RuntimeError)             a call after close()
├── GenerationError (RuntimeError)         the backend failed while generating
├── UnknownBackend (ValueError)            no backend of that name is installed
├── BackendUnavailable (ImportError)       its dependencies are missing; the message has the pip line
├── ExtraUnavailable (ImportError)         an optional feature's dependencies likewise
├── UnknownDevice (ValueError)             not a device name
├── DeviceUnavailable (OSError)            a device that this machine does not have
├── ModelError                             a model could not be had
│   ├── ModelInvalid (ValueError)          not a model, damaged, or of a kind that cannot be loaded
│   ├── ModelNotDownloaded (OSError)       not on this machine, and downloading is off
│   └── ModelDownloadError (OSError)       the hub could not be reached, or refused
├── TaskArgsInvalid (ValueError)           a GPT task does not have the shape it must have
├── TaskExecutionError (RuntimeError)      a valid GPT task failed while it ran
├── CheckpointError (ValueError)           a checkpoint cannot be written or read
├── PromptStyleError (ValueError)          no such prompt style, or a malformed one
└── PipelineError (ValueError)             a pipeline that cannot work, or a file that it cannot read or write

Each also derives from the builtin in brackets, so that callers who never import this module can still catch it.
It knows nothing of backends; foreign errors are mapped to these where they enter.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LLMKitError(Exception):
    """The root of all errors that llmkit raises."""


class ParameterError(LLMKitError, ValueError):
    """A parameter's value breaks its rule: `top_p must be in (0, 1], got 1.7`."""


class UnknownParameter(LLMKitError, TypeError):
    """A keyword that names no parameter."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"unknown parameter {name!r}{did_you_mean(name, known)}")


class MisspeltAttribute(LLMKitError, AttributeError):
    """Set on a model, a name that is a parameter's but for a slip; a subclass that means it declares it in its class.

    Attributes:
        meant: the parameter that it is close to.
    """

    def __init__(self, class_name: str, name: str, meant: str) -> None:
        self.meant = meant
        super().__init__(
            f"{class_name} has no attribute {name!r}; did you mean {meant!r}? "
            f"A subclass that means {name!r} declares it in its class"
        )


class UnsupportedParameter(LLMKitError, ValueError):
    """A backend that cannot honour a parameter says so instead of dropping it.

    Attributes:
        name: the parameter.
        backend: the backend that cannot honour it.
    """

    def __init__(self, name: str, backend: str) -> None:
        self.name, self.backend = name, backend
        super().__init__(f'the {backend} backend cannot honour {name!r}; leave it out, or pass on_unsupported="warn"')


class UnsupportedFeature(LLMKitError, ValueError):
    """Something other than a parameter that the backend cannot do."""


class InvalidRequest(LLMKitError, ValueError):
    """What was asked is not a request: an empty task, an unknown role, a malformed message."""


class InvalidConstraint(LLMKitError, ValueError):
    """A schema, regex, choice or grammar that is malformed or cannot be compiled; nothing was generated.

    Attributes:
        kind: which of the four.
        reason: what is wrong with it.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(f"the {kind} cannot be used: {reason}")


class StructuredOutputInvalid(LLMKitError, ValueError):
    """A text that does not fit its schema, regex, choice or grammar.

    Attributes:
        kind: which of the four.
        reason: where it does not fit.
        text: the text.
    """

    def __init__(self, kind: str, reason: str, text: str) -> None:
        self.kind, self.reason, self.text = kind, reason, text
        super().__init__(f"the text does not fit the {kind}: {reason}; it is {text!r}")


class StructuredOutputIncomplete(StructuredOutputInvalid):
    """A text that was still on its way to fit when its tokens ran out; give it more `max_tokens`."""

    def __init__(self, kind: str, reason: str, text: str) -> None:
        super().__init__(kind, f"its tokens ran out, raise max_tokens ({reason})", text)


class ToolError(LLMKitError, RuntimeError):
    """What a tool raises to answer the model with an error: `raise ToolError("no such city")`."""


class ToolRoundsExceeded(LLMKitError, RuntimeError):
    """A model that still calls tools when it may no longer.

    Attributes:
        max_tool_rounds: how often it may.
    """

    def __init__(self, max_tool_rounds: int) -> None:
        self.max_tool_rounds = max_tool_rounds
        super().__init__(f"the model still calls tools after {max_tool_rounds} rounds; raise max_tool_rounds")


class ContextLengthExceeded(LLMKitError, ValueError):
    """The prompt leaves no room for even one new token.

    Attributes:
        prompt_tokens: tokens of the prompt.
        max_tokens: new tokens that were asked for.
        limit: tokens that prompt and new text may have together.
    """

    def __init__(self, prompt_tokens: int, max_tokens: int | None, limit: int) -> None:
        self.prompt_tokens, self.max_tokens, self.limit = prompt_tokens, max_tokens, limit
        wanted = "any new token" if max_tokens is None else f"{max_tokens} new tokens"
        super().__init__(
            f"the prompt has {prompt_tokens} tokens, which leaves no room for {wanted} within the limit of {limit}; "
            "shorten the prompt"
        )


class CacheBudgetExceeded(LLMKitError, ValueError):
    """A request that cannot fit in the memory for keys and values, however long it waits.

    Attributes:
        needed_bytes: what the request may grow to.
        budget_bytes: what all requests and the cache may take together.
    """

    def __init__(self, n_tokens: int, n_choices: int, needed_bytes: int, budget_bytes: int) -> None:
        self.needed_bytes, self.budget_bytes = needed_bytes, budget_bytes
        super().__init__(
            f"{n_choices} x {n_tokens} tokens (prompt and max_tokens of each choice) need {needed_bytes:,} bytes of "
            f"keys and values, which is more than the budget of {budget_bytes:,} bytes; lower max_tokens, shorten the "
            "prompt, or raise the budget"
        )


class QueueFull(LLMKitError, RuntimeError):
    """As many requests wait already as may.

    Attributes:
        max_waiting: how many that is.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        super().__init__(f"max_waiting is {max_waiting}, and so many requests wait already; try again later")


class ModelClosed(LLMKitError, RuntimeError):
    """The model was closed; load it again to use it."""

    def __init__(self, name: str | None) -> None:
        super().__init__(f"the model {name!r} is closed; load it again")


class GenerationError(LLMKitError, RuntimeError):
    """The backend failed while generating; its own error is the cause."""


class UnknownBackend(LLMKitError, ValueError):
    """No installed backend has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        listed = ", ".join(names) or "none"
        super().__init__(f"no backend is named {name!r}{did_you_mean(name, names)}; installed: {listed}")


class BackendUnavailable(LLMKitError, ImportError):
    """A backend whose dependencies are not installed."""

    def __init__(self, backend: str, missing: str, install: str) -> None:
        super().__init__(f"the {backend} backend needs {missing}, which is not installed: {install}")


class ExtraUnavailable(LLMKitError, ImportError):
    """An optional feature whose dependencies are not installed."""

    def __init__(self, feature: str, missing: str, extra: str) -> None:
        super().__init__(f'{feature} needs {missing}, which is not installed: pip install "llmkit[{extra}]"')


class UnknownDevice(LLMKitError, ValueError):
    """A string that names no device."""


class DeviceUnavailable(LLMKitError, OSError):
    """A device that this machine does not have."""


class ModelError(LLMKitError):
    """A model could not be had."""


class ModelInvalid(ModelError, ValueError):
    """Not a model, damaged, or of a kind that cannot be loaded."""


class ModelNotDownloaded(ModelError, OSError):
    """The model is not on this machine, and downloading is off."""


class ModelDownloadError(ModelError, OSError):
    """The hub could not be reached, or refused the model."""


class TaskArgsInvalid(LLMKitError, ValueError):
    """A GPT task that does not have the shape it must have; the message says where."""


class TaskExecutionError(LLMKitError, RuntimeError):
    """A valid GPT task failed while it ran; the cause is attached."""


class CheckpointError(LLMKitError, ValueError):
    """A checkpoint that cannot be written or read; nothing was changed."""


class PromptStyleError(LLMKitError, ValueError):
    """No such prompt style, or a malformed one."""


class PipelineError(LLMKitError, ValueError):
    """A pipeline whose steps do not fit together, or a file of it that cannot be read or written."""


class ContextWarning(UserWarning):
    """The oldest turns of a conversation were left out, so that it fits the window; `dropped_messages` has them."""


class InertParameterWarning(UserWarning):
    """A parameter has no effect in the chosen mode (`length_penalty` without beams)."""


class UnsupportedParameterWarning(UserWarning):
    """A parameter was left out because `on_unsupported="warn"` allows it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'top_p'?` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
