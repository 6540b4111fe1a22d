"""Owns the short texts with a one-fact summary: somebody did something somewhere, among sentences that do not matter.

Names are real first names and invented ones, so that the model learns to copy a name rather than to know it.
"""

from __future__ import annotations

import random

from tools.tiny.data import COPY_WEIGHT, EOS, Example, Segment, is_held_out

_FIRST_NAMES_TEXT = """
    Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karin Leo Maria Nora Oscar Paula Quentin Rosa Simon Tina
    Ulrich Vera Walter Xenia Yusuf Zoe Alice Bruno Carmen Daniel Elena Frank Greta Hugo Ines Jonas Kira Lukas Mina Nils
    Olga Peter Rita Samuel Tara Umar Victor Wanda Yara Ahmed Bianca Chloe Dmitri Esther Fatima Gabriel Hannah Ivan
    Julia Kenji Laura Marco Nadia Omar Priya Ravi Sofia Thomas Uma Valentin Wei Yuki Zara Adam Beatrice Carlos Diana
    Erik Fiona George Helen Isaac Joan Karl Linda Martin Nina Otto Patricia Robert Sarah Tom Ursula Vincent William
    John Mary James Lucy Paul Jane Michael Susan Mark Eva Max Ella Noah Mia Liam Olivia
"""
FIRST_NAMES = tuple(_FIRST_NAMES_TEXT.split())
_STARTS = "B Br C Ch D Dr F G Gr H J K Kr L M N P Pl R S St T Tr V W Z Th Sh"
_VOWELS = "a e i o u ai ea io"
_MIDDLES = "l r n m d t v s k nd rl ss lt rk z b"
_ENDS = ("a", "o", "n", "el", "is", "or", "in", "us", "ek", "ia", "ard", "en")
_SURNAME_ENDS = ("son", "berg", "ski", "ov", "ez", "man", "well", "ford", "ini", "sen", "ton", "ley")

DEEDS = (
    "baked a cake", "bought a book", "found a key", "lost a hat", "sold a bicycle", "painted a wall", "planted a tree",
    "repaired a car", "wrote a letter", "met a friend", "opened a shop", "cooked a soup", "built a boat",
    "played the piano", "sang a song", "cleaned a window", "read a story", "saw a bear", "took a photo", "won a prize",
    "drank a coffee", "gave a speech", "fed a horse", "broke a cup",
)  # fmt: skip
PLACES = (
    "in the kitchen", "in the park", "at the market", "in the garden", "at the station", "at the school",
    "in the library", "on the beach", "in the village", "at the hotel", "on the bridge", "at the museum",
    "in the old town", "near the river", "at the office", "in the forest", "at the harbour", "in the street",
)  # fmt: skip
_TIMES = (
    "On Monday", "On Sunday", "On Friday", "Yesterday", "Last week", "Last summer", "In the morning", "After lunch",
    "In the evening", "Two days ago", "This year", "Before noon",
)  # fmt: skip
_ASIDES = (
    "It was raining.", "The sun was shining.", "It was a cold day.", "It was very warm.", "Nobody was surprised.",
    "It took two hours.", "The weather was fine.", "Many people came by.", "There was a lot of noise.",
    "Everybody was happy.", "Some children were watching.", "It had been planned for weeks.", "The bus was late.",
    "There was music in the air.", "A dog was barking.", "It was the first time.", "The streets were empty.",
    "That made the whole day.", "The neighbours talked about it for days.", "A cat was asleep nearby.",
)  # fmt: skip


def invented_name(rng: random.Random) -> str:
    """Makes up a name from syllables, for example `Trionda`."""
    middle = rng.choice(_VOWELS.split()) + rng.choice(_MIDDLES.split()) if rng.random() < 0.6 else ""
    return (
        rng.choice(_STARTS.split())
        + middle
        + rng.choice(_VOWELS.split())
        + rng.choice(_MIDDLES.split())
        + rng.choice(_ENDS)
    )


def is_unseen(name: str) -> bool:
    """Whether an invented name is kept out of training altogether."""
    return is_held_out(f"name|{name}")


def _surname(rng: random.Random) -> str:
    return (
        rng.choice(_STARTS.split())
        + rng.choice(_VOWELS.split())
        + rng.choice(_MIDDLES.split())
        + rng.choice(_SURNAME_ENDS)
    )


def _full_name(first: str, rng: random.Random) -> str:
    if rng.random() >= 0.3:
        return first
    surname = _surname(rng)
    while is_unseen(surname):
        surname = _surname(rng)
    return f"{first} {surname}"


def trained_name(rng: random.Random) -> str:
    """Draws a first name or an invented one that training may show."""
    if rng.random() < 0.35:
        return rng.choice(FIRST_NAMES)
    name = invented_name(rng)
    return name if not is_unseen(name) else trained_name(rng)


def _unseen_name(rng: random.Random) -> str:
    name = invented_name(rng)
    return name if is_unseen(name) and name not in FIRST_NAMES else _unseen_name(rng)


def _main_sentence(name: str, deed: str, place: str, rng: random.Random) -> str:
    form = rng.choice(
        ("{t}, {n} {d} {p}.", "{n} {d} {p}.", "{t} {n} {d} {p}.", "{T}, {n} {d}.", "{n}, as we know, {d} {p}.")
    )
    time = rng.choice(_TIMES)
    return form.format(t=time, T=f"{time}, {place}", n=name, d=deed, p=place)


def _text(main: str, rng: random.Random) -> str:
    asides = rng.sample(_ASIDES, rng.choice((0, 1, 2, 2, 3)))
    n_before = rng.choice((0, 0, 1)) if asides else 0
    return " ".join([*asides[:n_before], main, *asides[n_before:]])


def _summary(name: str, task: str, rng: random.Random) -> Example:
    full, deed, place = _full_name(name, rng), rng.choice(DEEDS), rng.choice(PLACES)
    text = _text(_main_sentence(full, deed, place, rng), rng)
    summary = f"{full} {deed} {place}."
    prompt = f"## Main Text\n\n{text}\n\n## Summary\n\n"
    segments = (Segment(prompt), Segment(summary + EOS, COPY_WEIGHT))
    return Example(task, (f"deed|{name}|{deed}|{place}",), (text,), segments, full)


def summary(rng: random.Random) -> Example:
    """Proposes a text about a name of the training set; the key is who did what where."""
    return _summary(trained_name(rng), "summaries, trained names", rng)


def real_name_summary(rng: random.Random) -> Example:
    """Proposes a text about a common first name, which is certain to occur in training."""
    return _summary(rng.choice(FIRST_NAMES), "summaries, trained names", rng)


def unseen_name_summary(rng: random.Random) -> Example:
    """Proposes a text about an invented name that training never shows."""
    return _summary(_unseen_name(rng), "summaries, unseen names", rng)
