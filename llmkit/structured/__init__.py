"""Structured output: what a text must be (`constraint.py`), and the masks that keep a model to it (`guide.py`).

It knows neither models nor engines; tokenizers only as llguidance sees them.
"""

from llmkit.structured.constraint import KINDS, Constraint, Kind
from llmkit.structured.guide import Guide, Guides, Matcher

__all__ = ["KINDS", "Constraint", "Guide", "Guides", "Kind", "Matcher"]
