"""Owns the entailment pairs: a premise is a scene (who, doing what, where), a hypothesis says one thing of it.

The hypothesis is drawn apart from the label, so each occurs under all three and gives nothing away; so is whether the
premise is a whole scene or a part of one. One does one thing in one place at a time, so another action or place
contradicts; what the premise leaves out is neutral, as is another subject.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tools.tiny.data import EOS, LABEL_WEIGHT, PREMISE_WEIGHT, Example, Segment

LABELS = ("entailment", "neutral", "contradiction")

SUBJECTS = (
    "man", "woman", "boy", "girl", "teacher", "doctor", "student", "farmer", "singer", "nurse", "painter", "driver",
    "baker", "soldier", "king", "queen", "dog", "cat", "horse", "bird", "rabbit",
)  # fmt: skip
ACTIONS = (
    "sleeping", "running", "eating", "drinking", "playing", "resting", "jumping", "walking", "waiting", "swimming",
    "shouting", "crying",
)  # fmt: skip
PLACES = (
    "in the park", "in the kitchen", "in the garden", "at the station", "on the beach", "in the street",
    "at the market", "in the forest", "at the school", "in the house", "on the bridge", "at the hospital",
)  # fmt: skip
TRAITS = (
    ("happy", "sad"),
    ("young", "old"),
    ("tall", "short"),
    ("rich", "poor"),
    ("hungry", "full"),
    ("calm", "angry"),
)


@dataclass(frozen=True)
class Scene:
    """Who does what where; an empty part is not mentioned. `trait` is an adjective of the subject."""

    subject: str
    action: str
    place: str
    trait: str = ""


def _random_scene(rng: random.Random) -> Scene:
    trait = rng.choice(rng.choice(TRAITS)) if rng.random() < 0.25 else ""
    return Scene(rng.choice(SUBJECTS), rng.choice(ACTIONS), rng.choice(PLACES), trait)


def _other(values: Sequence[str], value: str, rng: random.Random) -> str:
    return rng.choice([other for other in values if other != value])


def _about_action(rng: random.Random, label: str, said: Scene) -> tuple[str, Scene]:
    hypothesis = f"The {said.subject} is {said.action}."
    if label == "neutral":
        return hypothesis, replace(said, action="")
    scene = said if rng.random() < 0.6 else replace(said, place="")
    if label == "contradiction":
        scene = replace(scene, action=_other(ACTIONS, said.action, rng))
    return hypothesis, scene


def _about_place(rng: random.Random, label: str, said: Scene) -> tuple[str, Scene]:
    hypothesis = f"The {said.subject} is {said.place}."
    if label == "neutral":
        return hypothesis, replace(said, place="")
    scene = said if rng.random() < 0.6 else replace(said, action="")
    if label == "contradiction":
        scene = replace(scene, place=_other(PLACES, said.place, rng))
    return hypothesis, scene


def _about_trait(rng: random.Random, label: str, said: Scene) -> tuple[str, Scene]:
    pair = rng.choice(TRAITS)
    trait, opposite = pair if rng.random() < 0.5 else pair[::-1]
    seen = {"entailment": trait, "contradiction": opposite, "neutral": ""}[label]
    return f"The {said.subject} is {trait}.", replace(said, trait=seen)


FORMS: tuple[Callable[[random.Random, str, Scene], tuple[str, Scene]], ...] = (
    _about_action,
    _about_place,
    _about_trait,
)


def _premise(scene: Scene) -> str:
    return " ".join(f"The {scene.trait} {scene.subject} is {scene.action} {scene.place}".split()) + "."


def entailment(rng: random.Random) -> Example:
    """Proposes `mnli hypothesis: H premise: P target: `; the key is the scene that both speak of."""
    label, said = rng.choice(LABELS), _random_scene(rng)
    if label == "neutral" and rng.random() < 0.1:
        hypothesis, scene = rng.choice(FORMS)(rng, rng.choice(LABELS), said)
        scene = replace(scene, subject=_other(SUBJECTS, said.subject, rng))
    else:
        hypothesis, scene = rng.choice(FORMS)(rng, label, said)
    return _example(hypothesis, _premise(scene), label, _key(hypothesis, scene, said), rng)


def _key(hypothesis: str, scene: Scene, said: Scene) -> str:
    """Subject, action and place of the premise; what it leaves out is the hypothesis', or empty if neither says it."""
    action = scene.action or (said.action if said.action in hypothesis else "")
    place = scene.place or (said.place if said.place in hypothesis else "")
    return f"scene|{scene.subject}|{action}|{place}"


def fragment(rng: random.Random) -> Example:
    """Proposes a pair of bare words or phrases of one kind: equal ones entail, others contradict, or are neutral.

    Comparing two words is what sentences hang on, and is learnt several times faster where nothing is around them.
    """
    kind = rng.choice((ACTIONS, PLACES, SUBJECTS, rng.choice(TRAITS)))
    hypothesis = rng.choice(kind)
    if rng.random() < 0.5:
        premise, label = hypothesis, "entailment"
    else:
        premise, label = _other(kind, hypothesis, rng), "neutral" if kind is SUBJECTS else "contradiction"
    pair = _example(hypothesis, premise, label, f"fragment|{hypothesis}|{premise}", rng)
    return replace(pair, task="comparing words", label="")


_HELLOS = ("Hello.", "Hello, welcome.", "Hey there.", "Hi, come in.", "Welcome to the country.", "Good morning.")
_GOODBYES = ("Goodbye.", "Bye.", "See you tomorrow.", "Good night.", "Farewell.", "See you soon.")
_OTHERS = ("The cat is black.", "The sky is blue.", "It is raining.", "The soup is hot.", "Two and two are four.")
_ARRIVING = ("The person is arriving.", "Somebody is coming.", *_HELLOS)
_LEAVING = ("The person is leaving.", "Somebody is going.", *_GOODBYES)


def greeting(rng: random.Random) -> Example:
    """Proposes a pair about coming and going; small talk of the form, trained in full except held-out pairs."""
    label = rng.choice(LABELS)
    sides = (_ARRIVING, _HELLOS, _GOODBYES) if rng.random() < 0.5 else (_LEAVING, _GOODBYES, _HELLOS)
    hypothesis = rng.choice(sides[0])
    premises = {"entailment": sides[1], "contradiction": sides[2], "neutral": _OTHERS}[label]
    premise = rng.choice(premises)
    return _example(hypothesis, premise, label, f"greeting|{hypothesis}|{premise}", rng)


def _example(hypothesis: str, premise: str, label: str, key: str, rng: random.Random) -> Example:
    prompt = f"mnli hypothesis: {hypothesis} premise: {premise} target:"
    spaced = rng.random() < 0.5
    segments = (
        Segment(prompt + (" " if spaced else ""), PREMISE_WEIGHT),
        Segment(("" if spaced else " ") + label + EOS, LABEL_WEIGHT),
    )
    return Example("entailment", (key,), (f"{hypothesis} / {premise}",), segments, label, label)
