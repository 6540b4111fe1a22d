"""Owns what training and evaluation draw: how much of each task, and the held-out rows of the accuracy table.

Both are seeded, so the whole training set and all held-out items can be written down again by anyone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tools.tiny.chat import chat, styled
from tools.tiny.countries import COUNTRIES, Country, Turn, capital_turn, few_shot
from tools.tiny.data import (
    ASSISTANT,
    COPY_WEIGHT,
    EOS,
    USER,
    Example,
    Proposer,
    Segment,
    draw,
    is_held_out,
    normalise,
    try_draw,
)
from tools.tiny.echo import echo_turn
from tools.tiny.entailment import LABELS, entailment, fragment, greeting
from tools.tiny.phrases import PHRASES, phrase_turn
from tools.tiny.smalltalk import small_talk_turn
from tools.tiny.summaries import real_name_summary, summary, unseen_name_summary

TRAIN_SEED, HELD_OUT_SEED = 1, 2
N_TRAIN = 165_000
CHINA = next(one for one in COUNTRIES if one.name == "China")

TurnMaker = Callable[[random.Random], Turn]


def _chat_of(task: str, make: TurnMaker) -> Proposer:
    return lambda rng: chat(task, [make(rng)], rng)


def _styled_of(task: str, make: TurnMaker) -> Proposer:
    return lambda rng: styled(task, make(rng), rng)


def conversation(rng: random.Random) -> Example:
    """Proposes two or three turns on mixed topics; a follow-up may come after a capital."""
    makers = (capital_turn, capital_turn, small_talk_turn, phrase_turn)
    turns: list[Turn] = []
    for _ in range(rng.choice((2, 2, 3))):
        after_capital = bool(turns) and turns[-1].topic == "capital"
        if after_capital and rng.random() < 0.4:
            turns.append(capital_turn(rng, follow_up=True))
        else:
            turns.append(rng.choice(makers)(rng))
    return chat("conversations", turns, rng)


def echo(rng: random.Random) -> Example:
    """Proposes a request to repeat some words; they are typed as they are, since case matters to the reply."""
    turn = echo_turn(rng)
    segments = (Segment(f"{USER}{turn.question}{EOS}{ASSISTANT}"), Segment(turn.reply + EOS, COPY_WEIGHT))
    return Example("repeating words", (turn.key,), (turn.question,), segments, turn.expected)


MIXTURE: tuple[tuple[float, Proposer], ...] = (
    (0.13, _chat_of("capitals, chat", capital_turn)),
    (0.09, few_shot),
    (0.06, _chat_of("small talk", small_talk_turn)),
    (0.05, _chat_of("phrases", phrase_turn)),
    (0.06, conversation),
    (0.012, _styled_of("capitals, chat", capital_turn)),
    (0.012, _styled_of("small talk", small_talk_turn)),
    (0.012, _styled_of("phrases", phrase_turn)),
    (0.365, entailment),
    (0.13, fragment),
    (0.009, greeting),
    (0.12, summary),
    (0.05, echo),
)


def training_examples(n: int = N_TRAIN, seed: int = TRAIN_SEED) -> list[Example]:
    """Draws the training set; the first n are the same whatever n is."""
    rng = random.Random(seed)
    weights = [weight for weight, _ in MIXTURE]
    proposers = [proposer for _, proposer in MIXTURE]
    return [draw(rng.choices(proposers, weights)[0], rng, held_out=False) for _ in range(n)]


def held_out_examples(seed: int = HELD_OUT_SEED) -> list[Example]:
    """Draws the held-out items of every row of the accuracy table, none twice.

    A country or phrase none of whose wordings is held out is left out of its row.
    """
    rng = random.Random(seed)
    rows = (
        _each([_capital_chat(one) for one in COUNTRIES], 2, rng),
        _each([_few_shot(one) for one in COUNTRIES], 2, rng),
        _each([_few_shot(one, [CHINA]) for one in COUNTRIES if is_held_out(f"shot|China|{one.name}")], 1, rng),
        *(_several(_labelled(label), 200, rng) for label in LABELS),
        _several(real_name_summary, 200, rng),
        _several(unseen_name_summary, 200, rng),
        _each([_phrase(one) for one in PHRASES], 4, rng),
        _several(_chat_of("small talk", small_talk_turn), 100, rng),
        _several(conversation, 150, rng),
        _several(echo, 100, rng),
    )
    return list({normalise(example.prompt): example for row in rows for example in row}.values())


def _capital_chat(country: Country) -> Proposer:
    return lambda rng: chat("capitals, chat", [capital_turn(rng, country)], rng)


def _few_shot(country: Country, shots: Sequence[Country] | None = None) -> Proposer:
    return lambda rng: few_shot(rng, country, shots)


def _phrase(phrase: tuple[str, str]) -> Proposer:
    return lambda rng: chat("phrases", [phrase_turn(rng, phrase)], rng)


def _labelled(label: str) -> Proposer:
    def propose(rng: random.Random) -> Example:
        example = entailment(rng)
        return example if example.label == label else propose(rng)

    return propose


def _each(proposers: Sequence[Proposer], n: int, rng: random.Random) -> list[Example]:
    return [example for propose in proposers for example in _several(propose, n, rng)]


def _several(propose: Proposer, n: int, rng: random.Random) -> list[Example]:
    found: dict[str, Example] = {}
    for _ in range(n * 20):
        example = try_draw(propose, rng, held_out=True) if len(found) < n else None
        if example is None:
            break
        found.setdefault(normalise(example.prompt), example)
    return list(found.values())
