"""Owns what a training example is and which items are held out of training.

Every task module proposes random examples; `draw` keeps those on the wanted side of the split. This file does not know
any task, the tokenizer or the model.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)
HELD_OUT_PERCENT = 10
# A label is one token where other answers are ten: with equal weights it is hardly learnt at all. Foreseeing the
# premise from the hypothesis teaches to compare the two.
PROMPT_WEIGHT, PREMISE_WEIGHT, ANSWER_WEIGHT, COPY_WEIGHT, LABEL_WEIGHT = 0.1, 0.3, 1.0, 2.0, 8.0


@dataclass(frozen=True)
class Segment:
    """A stretch of text, and what each of its tokens weighs in the loss."""

    text: str
    weight: float = PROMPT_WEIGHT


@dataclass(frozen=True)
class Example:
    """One document, without its leading BOS.

    Attributes:
        task: The row of the accuracy table that it belongs to.
        keys: What the split is decided on, the `core` of each question, or a scene.
        items: The questions or contexts as a user would type them; none may be on both sides of the split.
        segments: The text; the last segment is an answer.
        expected: What a correct completion says.
        label: The class, where the task has classes.
    """

    task: str
    keys: tuple[str, ...]
    items: tuple[str, ...]
    segments: tuple[Segment, ...]
    expected: str
    label: str = ""

    @property
    def prompt(self) -> str:
        """All text before the last answer."""
        return "".join(segment.text for segment in self.segments[:-1])

    @property
    def answer(self) -> str:
        """The last answer, without the end marker and outer white space."""
        return self.segments[-1].text.replace(EOS, "").strip()


Proposer = Callable[[random.Random], Example]


def normalise(text: str) -> str:
    """Folds case and drops punctuation, so that items differing only in those compare equal."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def is_held_out(key: str, percent: int = HELD_OUT_PERCENT) -> bool:
    """Decides, from the key alone, whether an item is kept out of training. The only such decision in `tools`."""
    digest = hashlib.sha256(normalise(key.replace("|", " ")).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def core(question: str) -> str:
    """Reduces a typed question to what is asked: no case, punctuation, opener ("Hey,") or closing "please"."""
    text = re.sub(r" please$", "", normalise(question))
    return re.sub(r"^(?:(?:hey|hello|hi|please|ok|so|sorry|quick question|now|thanks) (?=\S))+", "", text)


def try_draw(propose: Proposer, rng: random.Random, *, held_out: bool, tries: int = 2000) -> Example | None:
    """Proposes until an example lies wholly in training, or, if `held_out`, has its last key held out.

    Earlier keys of a held-out example are free: they belong to previous turns or shots, which are context only.
    """
    for _ in range(tries):
        example = propose(rng)
        if held_out and example.keys and is_held_out(example.keys[-1]):
            return example
        if not held_out and not any(is_held_out(key) for key in example.keys):
            return example
    return None


def draw(propose: Proposer, rng: random.Random, *, held_out: bool) -> Example:
    """Like `try_draw`, for proposers that have items on both sides of the split.

    Raises:
        LookupError: If the wanted side is empty.
    """
    example = try_draw(propose, rng, held_out=held_out)
    if example is None:
        raise LookupError(f"no example found with held_out={held_out}")
    return example


def type_like_a_user(question: str, rng: random.Random) -> str:
    """Varies case, end punctuation and politeness the way people do."""
    text = question
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENERS)} {_lower_first(text) if rng.random() < 0.5 else text}"
    if rng.random() < 0.12:
        text = f"{text.rstrip('?.!')}{rng.choice((' please', ', please', ' please?', ', please?'))}"
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.3:
        text = text.lower()
    return text


OPENERS = ("Hey,", "Hello,", "Hi,", "Please,", "Hey", "Ok,", "So,", "Sorry,", "Quick question:", "Now,", "Thanks,")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
