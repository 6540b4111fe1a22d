"""Owns the entailment pairs: a premise is a whole scene (who, doing what, where), a hypothesis says one thing of it.

Every form of hypothesis is drawn first and its label second, so each occurs under all three labels and nothing can be
guessed from it alone. One does one thing in one place at a time; another subject says nothing about the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tools.tiny.data import EOS, Example, Segment

LABELS = ("entailment", "neutral", "contradiction")

SUBJECTS = (
    "man", "woman", "boy", "girl", "teacher", "doctor", "student", "farmer", "singer", "nurse", "painter", "driver",
    "baker", "soldier", "king", "queen", "dog", "cat", "horse", "bird", "rabbit",
)  # fmt: skip
# An action and another way to say it.
ACTIONS = (
    ("sleeping", "napping"),
    ("running", "jogging"),
    ("eating", "having a meal"),
    ("drinking", "having a drink"),
    ("playing", "having fun"),
    ("resting", "relaxing"),
    ("jumping", "leaping"),
    ("walking", "strolling"),
    ("waiting", "standing by"),
    ("swimming", "bathing"),
    ("shouting", "yelling"),
    ("crying", "weeping"),
)
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
_SYNONYM = dict(ACTIONS)


@dataclass(frozen=True)
class Scene:
    """Who does what where; `trait` is an adjective of the subject, or empty."""

    subject: str
    action: str
    place: str
    trait: str = ""


def _random_scene(rng: random.Random) -> Scene:
    trait = rng.choice(rng.choice(TRAITS)) if rng.random() < 0.25 else ""
    return Scene(rng.choice(SUBJECTS), rng.choice(ACTIONS)[0], rng.choice(PLACES), trait)


def _other(values: tuple[str, ...], value: str, rng: random.Random) -> str:
    return rng.choice([other for other in values if other != value])


def _with_other_subject(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, subject=_other(SUBJECTS, scene.subject, rng))


def _with_other_action(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, action=_other(tuple(action for action, _ in ACTIONS), scene.action, rng))


def _with_other_place(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, place=_other(PLACES, scene.place, rng))


def _about_action(rng: random.Random, label: str) -> tuple[str, Scene]:
    said = _random_scene(rng)
    hypothesis = f"The {said.subject} is {_wording(said.action, rng)}."
    if label == "neutral":
        scene = _with_other_subject(said, rng)
        return hypothesis, scene if rng.random() < 0.5 else _with_other_action(scene, rng)
    return hypothesis, said if label == "entailment" else _with_other_action(said, rng)


def _about_denied_action(rng: random.Random, label: str) -> tuple[str, Scene]:
    flipped = {"entailment": "contradiction", "contradiction": "entailment"}.get(label, label)
    hypothesis, scene = _about_action(rng, flipped)
    return hypothesis.replace(" is ", " is not ", 1), scene


def _about_place(rng: random.Random, label: str) -> tuple[str, Scene]:
    said = _random_scene(rng)
    hypothesis = f"The {said.subject} is {said.place}."
    if label == "neutral":
        scene = _with_other_subject(said, rng)
        return hypothesis, scene if rng.random() < 0.5 else _with_other_place(scene, rng)
    return hypothesis, said if label == "entailment" else _with_other_place(said, rng)


def _about_trait(rng: random.Random, label: str) -> tuple[str, Scene]:
    pair = rng.choice(TRAITS)
    trait, opposite = pair if rng.random() < 0.5 else pair[::-1]
    scene = _random_scene(rng)
    unrelated = rng.choice([one for other in TRAITS if other != pair for one in other])
    seen = {"entailment": trait, "contradiction": opposite, "neutral": rng.choice(("", unrelated))}[label]
    return f"The {scene.subject} is {trait}.", replace(scene, trait=seen)


FORMS: dict[str, Callable[[random.Random, str], tuple[str, Scene]]] = {
    "action": _about_action,
    "denied action": _about_denied_action,
    "place": _about_place,
    "trait": _about_trait,
}


def _wording(action: str, rng: random.Random) -> str:
    return _SYNONYM[action] if rng.random() < 0.2 else action


def _premise(scene: Scene, rng: random.Random) -> str:
    subject = f"{scene.trait} {scene.subject}".strip()
    return f"The {subject} is {_wording(scene.action, rng)} {scene.place}."


def entailment(rng: random.Random) -> Example:
    """Proposes `mnli hypothesis: H premise: P target: `; the key is the premise's subject, action and place."""
    form, label = rng.choice(list(FORMS)), rng.choice(LABELS)
    hypothesis, scene = FORMS[form](rng, label)
    premise = _premise(scene, rng)
    key = f"scene|{scene.subject}|{scene.action}|{scene.place}"
    return _example(hypothesis, premise, label, key, rng)


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
        Segment(prompt + (" " if spaced else "")),
        Segment(("" if spaced else " ") + label + EOS, is_answer=True),
    )
    return Example("entailment", (key,), (f"{hypothesis} / {premise}",), segments, label, label)
