"""The backend is what llmkit asks of a backend; pytest runs the tests that it inherits."""

import llmkit
from llmkit.testing import BackendContract


class TestMarkov(BackendContract):
    prompts = ("the model ", "a call ", "an error ")
    n_tokens = 16

    @classmethod
    def load(cls, **params):
        return llmkit.load("markov:", **params)
