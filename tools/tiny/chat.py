"""Owns how turns become documents: the chat template, optional system prompts, several turns, and plain prompt styles.

It does not know what the turns are about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tools.tiny.countries import Turn
from tools.tiny.data import ANSWER_WEIGHT, ASSISTANT, EOS, SYSTEM, USER, Example, Segment, type_like_a_user

# Kept equal to what `Segment`s below spell out; a test compares both.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Roles are system, user and assistant; got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly assistant.",
    "You are a friendly bot.",
    "You are llmkit's small demo model.",
    "Answer the question.",
    "Answer in one sentence.",
    "Be brief.",
    "You are a chat bot who answers questions.",
    "You are an expert in geography.",
    "You are a helpful, respectful and honest assistant.",
    "You are a translator and a guide.",
)
_STYLES = (
    ("<human>: {q}\n<bot>: ", ""),
    ("<human>: {q}\n<bot>:", " "),
    ("<human>: {q}<bot>: ", ""),
    ("### Instruction:\n{q}\n\n### Response:\n", ""),
    ("{q}", " "),
    ("{q}\n", ""),
)


def chat(task: str, turns: Sequence[Turn], rng: random.Random) -> Example:
    """Renders turns by the chat template, a third of the time after a system prompt."""
    questions = [type_like_a_user(turn.question, rng) for turn in turns]
    start = f"{SYSTEM}{rng.choice(SYSTEM_PROMPTS)}{EOS}" if rng.random() < 0.33 else ""
    segments: list[Segment] = []
    for turn, question in zip(turns, questions, strict=True):
        segments.append(Segment(f"{start}{USER}{question}{EOS}{ASSISTANT}"))
        segments.append(Segment(turn.reply + EOS, ANSWER_WEIGHT))
        start = ""
    keys = tuple(turn.key for turn in turns)
    return Example(task, keys, tuple(questions), tuple(segments), turns[-1].expected)


def styled(task: str, turn: Turn, rng: random.Random) -> Example:
    """Renders one turn without the template, in a prompt style such as `<human>: ... <bot>:` or none at all."""
    question = type_like_a_user(turn.question, rng)
    before, space = rng.choice(_STYLES)
    segments = (Segment(before.format(q=question)), Segment(space + turn.reply + EOS, ANSWER_WEIGHT))
    return Example(task, (turn.key,), (question,), segments, turn.expected)
