"""ScriptedLLM: a backend whose every token is known beforehand, without weights.

It is also the smallest whole example of a backend: a tokenizer, `_encode`, and `_generate`. It knows no chat template
and computes nothing; what it answers is what its author wrote down.
"""

from __future__ import annotations

import json
import math
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import Any, ClassVar, TypeAlias

from llmkit.backend import BackendLLM
from llmkit.capabilities import Capabilities
from llmkit.errors import GenerationError, InvalidRequest
from llmkit.fingerprint import fingerprint
from llmkit.noise import uniform
from llmkit.structured import KINDS
from llmkit.text import StopMatcher
from llmkit.types import Chunk, Message, Request, joined

Answer: TypeAlias = "str | Sequence[str]"
Answers: TypeAlias = "Answer | Mapping[str, Answer] | Callable[[str], Answer]"

EOS = 0
"""The token that ends every answer."""


def words(text: str) -> list[str]:
    """Words with the space before them, and any other whitespace by the character; joined they are the text."""
    return re.findall(r" ?\S+|\s", text)


def characters(text: str) -> list[str]:
    """Single characters."""
    return list(text)


class ScriptedLLM(BackendLLM):
    """A model that answers what it was told to answer, token by token, exactly counted.

    A token's id is its UTF-8 bytes read as a number, so ids are stable and can be turned back into text. A prompt of
    several messages is read as their contents joined by newlines, after the tools as JSON; tools change no answer.
    Where a schema, regex, choice or grammar is asked for, the scripted answer must fit it; one that does not fails
    with `StructuredOutputInvalid`. Greedy decoding gives the first of an answer's alternatives; sampling chooses among
    them by seed and choice, the later ones likelier the higher the temperature. Safe to call from many threads.

    Args:
        answers: the answer to everything; or answers by prompt; or a function from prompt to answer. The prompt here
            is the string, or the content of the last message that is not the model's own. A list of strings is an
            answer with alternatives.
        model_name: the name it goes by.
        context_length: tokens that prompt and new text may have together; None for no limit.
        tokens: cuts a text into tokens that join to it; `words` or `characters`, or a function of your own.
        delay_s: seconds before each token.
        fail_on: generating fails with `GenerationError` at the first token that contains this.
        params: the parameters of `BaseLLM`.

    Attributes:
        requests: every request that reached the model, as it was after preparation.
    """

    backend_name: ClassVar[str] = "scripted"
    capabilities: Capabilities = Capabilities(
        params=frozenset(
            {"max_tokens", "max_length", "temperature", "do_sample", "seed", "num_return_sequences", "stop_token"}
            | {"system_prompt", "role"}
        ),
        streaming=True,
        batching=True,
        tools=True,
        structured=frozenset(KINDS),
        reproducible="batched",
    )

    def __init__(
        self,
        answers: Answers = "ok",
        *,
        model_name: str = "scripted",
        context_length: int | None = None,
        tokens: Callable[[str], Sequence[str]] = words,
        delay_s: float = 0.0,
        fail_on: str | None = None,
        **params: Any,
    ) -> None:
        super().__init__(model_name, **params)
        self.requests: list[Request] = []
        self._answers, self._tokens = answers, tokens
        self._context_length, self._delay_s, self._fail_on = context_length, delay_s, fail_on

    @property
    def context_length(self) -> int | None:
        """As it was given."""
        return self._context_length

    @property
    def fingerprint(self) -> str | None:
        """A hash of the answers; None where a function gives them."""
        return None if callable(self._answers) else fingerprint({"answers": repr(self._answers)})

    def _num_tokens(self, text: str) -> int:
        return len(self._tokens(text))

    def _encode(self, request: Request) -> list[int]:
        tools = json.dumps([dict(tool) for tool in request.tools]) if request.tools else ""
        return [token_id(token) for token in self._tokens(tools + joined(request.prompt))]

    def _generate(self, requests: Sequence[Request]) -> Iterator[Chunk]:
        """One token of every choice in turn, as a batch would."""
        self.requests.extend(requests)
        choices = [self._choice(at, request, n) for at, request in enumerate(requests) for n in range(request.params.n)]
        for step in zip_longest(*choices):
            time.sleep(self._delay_s)
            yield from (chunk for chunk in step if chunk is not None)

    def _choice(self, at: int, request: Request, choice: int) -> Iterator[Chunk]:
        """The chunks of one choice, one a token; the first of a request's tells the length of its prompt."""
        matcher = StopMatcher(request.params.stop_strings)
        prompt_tokens = len(request.prompt_ids or ()) if choice == 0 else None
        room = request.params.max_tokens or math.inf
        answer = self._text(request, choice)
        if request.constraint is not None:
            request.constraint.parse(answer)
        for n, token in enumerate([*self._tokens(answer), ""], start=1):
            if self._fail_on and self._fail_on in token:
                raise GenerationError(f"scripted to fail on {self._fail_on!r}")
            text = matcher.feed(token)
            reason = "stop" if matcher.matched or not token else "length" if n == room else None
            text += matcher.flush() if reason else ""
            yield Chunk(at, choice, text, (token_id(token),), reason, prompt_tokens)
            if reason:
                return
            prompt_tokens = None

    def _text(self, request: Request, choice: int) -> str:
        """The alternative that this choice says."""
        answer, params = self._answer_to(request), request.params
        if isinstance(answer, str):
            return answer
        if not params.do_sample:
            return answer[0]
        temperature = 1.0 if params.temperature is None else params.temperature
        reached = list(accumulate(math.exp(-rank / temperature) for rank in range(len(answer))))
        return answer[bisect_right(reached, uniform(params.seed or 0, choice, 0) * reached[-1])]

    def _answer_to(self, request: Request) -> Answer:
        prompt = request.prompt if isinstance(request.prompt, str) else _last_said(request.prompt)
        if callable(self._answers):
            return self._answers(prompt)
        if not isinstance(self._answers, Mapping):
            return self._answers
        if prompt not in self._answers:
            raise InvalidRequest(f"no answer is scripted for {prompt!r}")
        return self._answers[prompt]


def _last_said(messages: Sequence[Message]) -> str:
    """The last message that is not the model's own, or the last of all."""
    others = [message.content for message in messages if message.role != "assistant"]
    return others[-1] if others else messages[-1].content


def token_id(token: str) -> int:
    """A token's id: its UTF-8 bytes as a number, behind a 1 that keeps leading zeros; `EOS` for no text."""
    return int.from_bytes(b"\x01" + token.encode()) if token else EOS


def token_text(token_id: int) -> str:
    """The text of a token's id; nothing for `EOS`."""
    return token_id.to_bytes((token_id.bit_length() + 7) // 8)[1:].decode()
