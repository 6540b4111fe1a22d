"""How each parameter shows that it changes generation: a probe a parameter, on any backend.

A probe compares texts, token counts or finish reasons; it knows no model, so it looks for a difference over several
prompts and seeds where a single one might show none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmkit.backend import BackendLLM
from llmkit.params import GenerationParams
from llmkit.types import Completion, Conversation, Request

SEEDS = range(6)

EXAMPLES: Mapping[str, Any] = {
    "max_tokens": 1,
    "max_length": 1000,
    "temperature": 0.5,
    "top_k": 1,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "do_sample": True,
    "seed": 1,
    "num_return_sequences": 2,
    "num_beams": 2,
    "early_stopping": True,
    "length_penalty": 2.0,
    "repetition_penalty": 2.0,
    "frequency_penalty": 1.0,
    "presence_penalty": 1.0,
    "stop_token": "e",
    "logprobs": 1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "system_prompt": "Be brief.",
    "role": "user",
}
"""For each parameter a value that is not neutral, so that a backend must honour or refuse it."""


@dataclass(frozen=True)
class Subject:
    """A model under test, and how it is asked.

    Attributes:
        llm: the model.
        prompts: what it is asked.
        n_tokens: tokens of a text at most.
        hot: a temperature at which its texts differ between seeds.
    """

    llm: BackendLLM
    prompts: Sequence[str]
    n_tokens: int
    hot: float

    def complete(self, prompt: str, **overrides: Any) -> Completion:
        """The completion under these overrides, of `n_tokens` unless they say otherwise."""
        limit = {} if "max_tokens" in overrides or "max_length" in overrides else {"max_tokens": self.n_tokens}
        return self.llm.complete(prompt, **limit, **overrides)

    def likeliest(self, prompt: str, **overrides: Any) -> Completion:
        """The completion without sampling."""
        return self.complete(prompt, **self.declared(temperature=0), **overrides)

    def greedy(self, prompt: str, **overrides: Any) -> str:
        """The text without sampling."""
        return self.likeliest(prompt, **overrides).text

    def sampled(self, **overrides: Any) -> list[str]:
        """A hot text of each prompt and seed."""
        settings: dict[str, Any] = {"temperature": self.hot, "do_sample": True}
        settings = {**self.declared(**settings), "max_tokens": self.n_tokens, **overrides}
        asked = [(prompt, self.declared(seed=seed)) for prompt in self.prompts for seed in SEEDS]
        requests = [Request(prompt, GenerationParams(**seeded, **settings)) for prompt, seeded in asked]
        return [completion.text for completion in self.llm.complete_batch(requests)]

    def read(self, task: Conversation, **overrides: Any) -> tuple[object, ...]:
        """What shows how the model read a prompt: its length, the likeliest text, and about how likely it is."""
        settings = {"max_tokens": self.n_tokens, **self.declared(temperature=0, logprobs=0), **overrides}
        completion = self.llm.complete(task, **settings)
        entries = completion.choices[0].logprobs or ()
        return completion.usage.prompt_tokens, completion.text, [round(entry.logprob, 4) for entry in entries]

    def longer(self) -> Subject:
        """The same with as many tokens as a penalty may need to show."""
        return replace(self, n_tokens=3 * self.n_tokens)

    def declared(self, **values: Any) -> dict[str, Any]:
        """Those of the values whose parameters the backend declares."""
        return {name: value for name, value in values.items() if name in self.llm.capabilities.params}


def _max_tokens(subject: Subject) -> bool:
    long, short = (subject.complete(subject.prompts[0], max_tokens=n) for n in (subject.n_tokens, 1))
    return long.text != short.text and long.text.startswith(short.text)


def _max_length(subject: Subject) -> bool:
    prompt = subject.prompts[0]
    n_prompt = subject.complete(prompt, max_tokens=1).usage.prompt_tokens
    if n_prompt is None:
        return False
    return (
        subject.complete(prompt, max_length=n_prompt + 1).text != subject.complete(prompt, max_length=n_prompt + 9).text
    )


def _temperature(subject: Subject) -> bool:
    """With equal seeds another temperature gives other texts; at 0 there is only the likeliest one."""
    cold, hot = (subject.sampled(temperature=value) for value in (0.05, subject.hot))
    at_zero = subject.sampled(temperature=0.0, **subject.declared(do_sample=False))
    return _differ(cold, hot) and _one_text_a_prompt(at_zero)


def _do_sample(subject: Subject) -> bool:
    settings = subject.declared(temperature=subject.hot)
    sampled, not_sampled = (subject.sampled(**settings, do_sample=does) for does in (True, False))
    return _differ(sampled, not_sampled) and _one_text_a_prompt(not_sampled)


def _narrows(**overrides: Any) -> Callable[[Subject], bool]:
    """Whether a filter that leaves one token at each place makes all seeds say the same, which they do not without."""

    def probe(subject: Subject) -> bool:
        return _one_text_a_prompt(subject.sampled(**overrides)) and not _one_text_a_prompt(subject.sampled())

    return probe


def _seed(subject: Subject) -> bool:
    return not _one_text_a_prompt(subject.sampled())


def _num_return_sequences(subject: Subject) -> bool:
    settings = subject.declared(temperature=subject.hot, do_sample=True)
    completions = [subject.complete(subject.prompts[0], n=3, **subject.declared(seed=n), **settings) for n in SEEDS]
    texts = [{choice.text for choice in completion.choices} for completion in completions]
    return all([c.index for c in one.choices] == [0, 1, 2] for one in completions) and any(len(t) > 1 for t in texts)


def _changes(*pairs: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Callable[[Subject], bool]:
    """Whether some pair of settings gives other texts for some prompt, greedily or sampled with equal seeds."""

    def probe(subject: Subject) -> bool:
        subject = subject.longer()
        if any(subject.greedy(p, **a) != subject.greedy(p, **b) for a, b in pairs for p in subject.prompts):
            return True
        return any(_differ(subject.sampled(**a), subject.sampled(**b)) for a, b in pairs)

    return probe


def _num_beams(subject: Subject) -> bool:
    """Some text is not the greedy one, also where the model is at a loss, for a sure one has no better beam."""
    prompts = (*subject.prompts, "xq zt", "1 4 1 5", "once upon")
    return any(subject.complete(p, num_beams=4, raw=True).text != subject.greedy(p, raw=True) for p in prompts)


def _among_beams(a: Mapping[str, Any], b: Mapping[str, Any]) -> Callable[[Subject], bool]:
    """Whether two settings of beam search give other texts, where beams end at different lengths.

    They do so if a token that the greedy text has in its middle ends them.
    """

    def probe(subject: Subject) -> bool:
        for prompt in subject.prompts:
            for token_id in dict.fromkeys(subject.complete(prompt).choices[0].token_ids[1:]):
                texts = {subject.complete(prompt, num_beams=4, eos_token_id=token_id, **one).text for one in (a, b)}
                if len(texts) > 1:
                    return True
        return False

    return probe


def _stop_token(subject: Subject) -> bool:
    for prompt in subject.prompts:
        text = subject.greedy(prompt)
        stop = text[len(text) // 2 :][:2]
        if stop:
            return subject.greedy(prompt, stop_token=stop) == text[: text.index(stop)]
    return False


def _logprobs(subject: Subject) -> bool:
    completion = subject.likeliest(subject.prompts[0], logprobs=2)
    entries = completion.choices[0].logprobs or ()
    n_tokens = completion.usage.completion_tokens or len(entries)
    return len(entries) == n_tokens > 0 and all(one.logprob <= 0 and len(one.top_logprobs) <= 2 for one in entries)


def _pad_token_id(subject: Subject) -> bool:
    """Padding must not show in a text: it has an effect where rows are padded, and is named as idle elsewhere."""
    plain, padded = (subject.complete(subject.prompts[0], **one) for one in ({}, {"pad_token_id": 0}))
    return "pad_token_id" in padded.inert or padded.choices == plain.choices


def _eos_token_id(subject: Subject) -> bool:
    for prompt in subject.prompts:
        ids = subject.likeliest(prompt).choices[0].token_ids
        if len(set(ids)) > 1:
            end = next(token for token in ids if token != ids[0])
            ended = subject.likeliest(prompt, eos_token_id=end).choices[0]
            return ended.token_ids == ids[: ids.index(end) + 1] and ended.finish_reason == "stop"
    return False


def _bos_token_id(subject: Subject) -> bool:
    prompt = subject.prompts[0]
    return any(subject.read(prompt, bos_token_id=token_id) != subject.read(prompt) for token_id in range(1, 9))


def _system_prompt(subject: Subject) -> bool:
    prompt = subject.prompts[0]
    return subject.read(prompt, system_prompt="Be brief, please.") != subject.read(prompt)


def _role(subject: Subject) -> bool:
    """The sides change places: what the user would say next is another text than what the assistant would."""
    greeting = ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello! How can I help you?"})
    return subject.read(greeting, role="user") != subject.read(greeting, role="assistant")


PROBES: Mapping[str, Callable[[Subject], bool]] = {
    "max_tokens": _max_tokens,
    "max_length": _max_length,
    "temperature": _temperature,
    "top_k": _narrows(top_k=1),
    "top_p": _narrows(top_p=1e-6),
    "min_p": _narrows(min_p=1.0),
    "typical_p": _narrows(typical_p=1e-6),
    "do_sample": _do_sample,
    "seed": _seed,
    "num_return_sequences": _num_return_sequences,
    "num_beams": _num_beams,
    "early_stopping": _among_beams({"early_stopping": True}, {"early_stopping": "never", "length_penalty": 4.0}),
    "length_penalty": _among_beams({"length_penalty": -4.0}, {"length_penalty": 4.0}),
    "repetition_penalty": _changes(({}, {"repetition_penalty": 9.0}), ({}, {"repetition_penalty": 0.2})),
    "frequency_penalty": _changes(({"frequency_penalty": -2.0}, {"frequency_penalty": 2.0})),
    "presence_penalty": _changes(({"presence_penalty": -2.0}, {"presence_penalty": 2.0})),
    "stop_token": _stop_token,
    "logprobs": _logprobs,
    "pad_token_id": _pad_token_id,
    "eos_token_id": _eos_token_id,
    "bos_token_id": _bos_token_id,
    "system_prompt": _system_prompt,
    "role": _role,
}
"""For each parameter, whether it changes what a model generates as its documentation says."""


def _differ(some: Iterable[object], others: Iterable[object]) -> bool:
    return any(a != b for a, b in zip(some, others, strict=True))


def _one_text_a_prompt(texts: Sequence[str]) -> bool:
    """Whether the seeds of each prompt said the same."""
    rows = [texts[at : at + len(SEEDS)] for at in range(0, len(texts), len(SEEDS))]
    return all(len(set(row)) == 1 for row in rows)
