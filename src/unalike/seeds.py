"""Independent, named random streams.

Each purpose has a stream of its own, so that asking for one more number never changes another, and each
sample has one too, so that any sample can be drawn again alone.
"""

from __future__ import annotations

import hashlib

import numpy as np


def _entropy(seed: int, purpose: str, index: int) -> list[int]:
    name = hashlib.sha256(purpose.encode()).digest()
    return [seed, int.from_bytes(name[:16], "little"), index]


def generator_for(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """NumPy generator of the stream ``purpose``, number ``index``, under ``seed`` (all non-negative)."""
    return np.random.default_rng(np.random.SeedSequence(_entropy(seed, purpose, index)))


def seed_for(seed: int, purpose: str, index: int = 0) -> int:
    """Seed of 63 bits for generators that take one number, such as ``torch.Generator``."""
    state = np.random.SeedSequence(_entropy(seed, purpose, index)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
