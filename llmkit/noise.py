"""Random numbers that belong to a token, not to a generator's state.

A number is a pure function of (seed, choice, index of the generated token), so neighbours in a batch, other threads
and global generators cannot disturb it. This module does not know how a number becomes a token.
"""

from __future__ import annotations

import hashlib
import secrets

_MANTISSA_BITS = 53
_DRAWN_SEED_BITS = 32


def uniform(seed: int, choice: int, index: int) -> float:
    """A number uniform in [0, 1), the first 53 bits of BLAKE2b over the three integers.

    Args:
        seed: the request's seed, in [0, 2**64).
        choice: index of the choice within its request.
        index: index of the token among the generated ones.
    """
    key = b"".join(part.to_bytes(8, "little") for part in (seed, choice, index))
    bits = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return (bits >> (64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS


def draw_seed() -> int:
    """A fresh seed for a request that has none; small enough to be typed and to survive JSON."""
    return secrets.randbits(_DRAWN_SEED_BITS)
