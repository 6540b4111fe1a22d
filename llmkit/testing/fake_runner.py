"""FakeRunner: a model runner without a model, for testing an engine or a backend's use of it.

Its "keys and values" at a position depend on every token up to there, and its next token on those of the last position,
read from its own store. So a wrong start, a copy of the wrong length, a stale truncation or two mixed-up sequences
change the result, and `continuation` tells what the result must be. What breaks the protocol raises `ProtocolBroken`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import cast

from llmkit.engine.runner import TILE, KeysValues, Slice

VOCABULARY = 1000
_BYTES_PER_TOKEN = 1


class ProtocolBroken(Exception):
    """An engine used the runner in a way that the protocol does not allow."""


class FakeRunnerError(Exception):
    """The error that the runner was told to raise."""


@dataclass(frozen=True, slots=True)
class FakeSampler:
    """Chooses the token that follows from a state; another salt chooses other tokens.

    Attributes:
        salt: tells choices apart.
    """

    salt: int = 0

    def next_token(self, state: int) -> int:
        """A token in [0, VOCABULARY)."""
        return hash((state, self.salt)) % VOCABULARY


@dataclass(frozen=True, slots=True)
class _Cell:
    """Keys and values of one position: a digest of all tokens up to it, and how it was computed."""

    state: int
    reproducible: bool


@dataclass(eq=False, slots=True)
class FakeKeysValues:
    """Keys and values of one sequence.

    Attributes:
        cells: one per token.
        n_tiles: tiles allocated; truncating keeps them.
        is_freed: it must not be used any more.
    """

    cells: list[_Cell] = field(default_factory=list[_Cell])
    n_tiles: int = 0
    is_freed: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes allocated."""
        return self.n_tiles * TILE * _BYTES_PER_TOKEN

    def append(self, token_id: int, reproducible: bool) -> None:
        """Read one token."""
        self.cells.append(_Cell(_next_state(self.state, token_id, len(self.cells)), reproducible))
        self.n_tiles = max(self.n_tiles, _tiles(len(self.cells)))

    @property
    def state(self) -> int:
        """What the tokens so far amount to."""
        return self.cells[-1].state if self.cells else 0


class FakeRunner:
    """A `ModelRunner` whose next token is a pure function of the tokens before it.

    It takes one byte a token, in tiles of 64. All but `bytes_for` must be called from one thread.

    Args:
        fail_at: steps, counted from 1, that raise `FakeRunnerError` after a part of their slices was read.
        delay_s: seconds that a step takes.

    Attributes:
        steps: what each step read: its slices, as numbers of tokens.
        in_use: keys and values that were not freed.
        peak_bytes: the most bytes that were ever allocated at once.
        n_new: sequences begun from nothing.
        n_forked: copies made.
        is_closed: `close` was called.
    """

    def __init__(self, *, fail_at: Container[int] = (), delay_s: float = 0.0) -> None:
        self._fail_at, self._delay_s = fail_at, delay_s
        self._owner: int | None = None
        self.steps: list[list[int]] = []
        self.in_use: dict[FakeKeysValues, None] = {}
        self.peak_bytes = self.n_new = self.n_forked = 0
        self.is_closed = False

    @property
    def n_tokens_read(self) -> int:
        """Tokens read in all steps."""
        return sum(map(sum, self.steps))

    @property
    def allocated_bytes(self) -> int:
        """Bytes allocated now."""
        return sum(keys_values.n_bytes for keys_values in self.in_use)

    def bytes_for(self, n_tokens: int) -> int:
        """One byte a token, in whole tiles."""
        return _tiles(n_tokens) * TILE * _BYTES_PER_TOKEN

    def new(self) -> FakeKeysValues:
        """An empty sequence."""
        self._check_owner()
        self.n_new += 1
        return self._registered(FakeKeysValues())

    def fork(self, source: KeysValues, n_tokens: int) -> FakeKeysValues:
        """A copy of the first tokens."""
        cells = self._own(source).cells
        _require(0 < n_tokens <= len(cells), f"fork at {n_tokens} of {len(cells)} tokens")
        self.n_forked += 1
        return self._registered(FakeKeysValues(cells[:n_tokens], _tiles(n_tokens)))

    def truncate(self, keys_values: KeysValues, n_tokens: int) -> None:
        """Forget tokens; the memory stays allocated."""
        cells = self._own(keys_values).cells
        _require(0 < n_tokens <= len(cells), f"truncated to {n_tokens} of {len(cells)} tokens")
        del cells[n_tokens:]

    def free(self, keys_values: KeysValues) -> None:
        """Give memory back."""
        own = self._own(keys_values)
        own.is_freed = True
        del self.in_use[own]

    def step(self, slices: Sequence[Slice]) -> list[list[int]]:
        """Read all slices, and choose a token for each sampler."""
        self._check_owner()
        _require(len(slices) > 0, "an empty step")
        _require(len({id(part.keys_values) for part in slices}) == len(slices), "two slices of one sequence")
        self.steps.append([len(part.token_ids) for part in slices])
        if self._delay_s:
            time.sleep(self._delay_s)
        if len(self.steps) in self._fail_at:
            for part in slices[::2]:
                self._read(part)
            raise FakeRunnerError(f"told to fail at step {len(self.steps)}")
        chosen = [self._read(part) for part in slices]
        self._note_peak()
        return chosen

    def close(self) -> None:
        """Nothing is left to free."""
        self._check_owner()
        _require(not self.in_use, f"closed with {len(self.in_use)} sequences in use")
        self.is_closed = True

    def _read(self, part: Slice) -> list[int]:
        own = self._own(part.keys_values)
        _require(len(part.token_ids) > 0, "a slice without tokens")
        _require(part.start == len(own.cells), f"a slice starts at {part.start}, there are {len(own.cells)} tokens")
        usable = not part.reproducible or all(cell.reproducible for cell in own.cells)
        _require(usable, "a reproducible slice after tokens that were read in fast numerics")
        for token_id in part.token_ids:
            own.append(token_id, part.reproducible)
        return [cast("FakeSampler", sampler).next_token(own.state) for sampler in part.samplers]

    def _registered(self, keys_values: FakeKeysValues) -> FakeKeysValues:
        self.in_use[keys_values] = None
        self._note_peak()
        return keys_values

    def _own(self, keys_values: KeysValues) -> FakeKeysValues:
        self._check_owner()
        _require(isinstance(keys_values, FakeKeysValues), "keys and values of another kind of runner")
        own = cast("FakeKeysValues", keys_values)
        _require(not own.is_freed, "used after it was freed")
        _require(own in self.in_use, "keys and values of another runner")
        return own

    def _check_owner(self) -> None:
        self._owner = self._owner or threading.get_ident()
        _require(threading.get_ident() == self._owner, "called from another thread than before")
        _require(not self.is_closed, "used after it was closed")

    def _note_peak(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)


def continuation(prompt_ids: Sequence[int], sampler: FakeSampler, is_last: Callable[[list[int]], bool]) -> list[int]:
    """The tokens that a lone sequence gets, computed from scratch.

    Args:
        prompt_ids: the prompt.
        sampler: the sampler of the choice.
        is_last: whether the tokens generated so far are the whole text.
    """
    state, generated = 0, list[int]()
    for position, token_id in enumerate(prompt_ids):
        state = _next_state(state, token_id, position)
    while True:
        generated.append(sampler.next_token(state))
        if is_last(generated):
            return generated
        state = _next_state(state, generated[-1], len(prompt_ids) + len(generated) - 1)


def _next_state(state: int, token_id: int, position: int) -> int:
    return hash((state, token_id, position))


def _tiles(n_tokens: int) -> int:
    return -(-n_tokens // TILE)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ProtocolBroken(problem)
