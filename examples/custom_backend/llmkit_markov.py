"""A backend in one module: each character is drawn from those that followed the same few characters in a text."""

from collections import Counter, defaultdict
from itertools import accumulate
from pathlib import Path

from llmkit import BackendLLM, Chunk, errors
from llmkit.capabilities import Capabilities
from llmkit.fingerprint import fingerprint
from llmkit.noise import uniform
from llmkit.text import OutputText
from llmkit.types import joined

LONGEST_CONTEXT = 6


class MarkovLLM(BackendLLM):
    """Continues a prompt in the manner of a text file; without a file, in that of llmkit's list of errors."""

    backend_name = "markov"
    capabilities = Capabilities(
        params=frozenset({"max_tokens", "max_length", "temperature", "top_k", "do_sample", "seed"})
        | {"num_return_sequences", "stop_token"},
        streaming=True,
        reproducible="batched",
    )

    def __init__(self, model_name=None, **params):
        super().__init__(model_name or "list-of-errors", **params)
        try:
            self._text = Path(model_name).read_text() if model_name else errors.__doc__
        except OSError as error:
            raise errors.ModelNotDownloaded(f"cannot read {model_name!r}: {error.strerror}") from error
        self._followers = defaultdict(Counter)
        for end, character in enumerate(self._text):
            for n in range(min(end, LONGEST_CONTEXT) + 1):
                self._followers[self._text[end - n : end]][character] += 1

    fingerprint = property(lambda self: fingerprint({"text": self._text}))

    def _encode(self, request):
        return [ord(character) for character in joined(request.prompt)]

    def _generate(self, requests):
        for at, request in enumerate(requests):
            yield Chunk(at, prompt_tokens=len(request.prompt_ids))
            for choice in range(request.params.n):
                yield from self._choice(at, choice, request)

    def _choice(self, at, choice, request):
        so_far, params = joined(request.prompt), request.params
        output = OutputText(_decode, stops=params.stop_strings, max_tokens=params.max_tokens)
        while output.finish_reason is None:
            number = uniform(params.seed or 0, choice, len(output.token_ids))
            character = self._next(so_far[-LONGEST_CONTEXT:], params, number)
            so_far += character
            yield Chunk(at, choice, output.feed(ord(character)), (ord(character),), output.finish_reason)

    def _next(self, context, params, number):
        while context not in self._followers:
            context = context[1:]
        ranked = sorted(self._followers[context].items(), key=lambda item: (-item[1], item[0]))
        if not params.do_sample:
            return ranked[0][0]
        ranked = ranked[: params.top_k] if (params.top_k or 0) > 0 else ranked
        exponent = 1 / (1.0 if params.temperature is None else params.temperature)
        reached = list(accumulate((count / ranked[0][1]) ** exponent for _, count in ranked))
        return next(c for (c, _), r in zip(ranked, reached, strict=True) if r > number * reached[-1])


def _decode(token_ids):
    return "".join(map(chr, token_ids))
