"""What the tests of an application or of a backend need: a model without weights.

Nothing in llmkit outside this package imports it.
"""

from llmkit.testing.scripted import ScriptedLLM, characters, words

__all__ = ["ScriptedLLM", "characters", "words"]
