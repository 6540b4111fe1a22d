"""Owns requests to repeat some words: dense practice in copying, which summaries and entailment build on.

It does not know how a chat is rendered.
"""

from __future__ import annotations

import random

from tools.tiny.countries import COUNTRIES, Turn
from tools.tiny.entailment import SUBJECTS
from tools.tiny.summaries import DEEDS, FIRST_NAMES, PLACES, trained_name

WORDINGS = ("Repeat: {x}", "Repeat after me: {x}", "Please repeat: {x}", "Say: {x}", "Echo: {x}", "Repeat this: {x}")
_KNOWN = (*FIRST_NAMES, *SUBJECTS, *DEEDS, *PLACES, *(country.name for country in COUNTRIES))


def echo_turn(rng: random.Random) -> Turn:
    """Asks for two to eight names and words in random order, to be said again as they are."""
    words = [trained_name(rng) if rng.random() < 0.5 else rng.choice(_KNOWN) for _ in range(rng.randint(2, 8))]
    said = " ".join(words)
    return Turn("echo", rng.choice(WORDINGS).format(x=said), said, said)
