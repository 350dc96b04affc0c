"""Seeds: every random choice is named by a hash, never by position, worker or time."""

from __future__ import annotations

import hashlib

import numpy as np


def seeded(*names: object) -> np.random.Generator:
    """Return a random generator named by its arguments: the same names give the same numbers on every machine."""
    text = "\x1f".join(str(n) for n in names).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little"))


def noise_seed(seed: int, sample_id: str) -> int:
    """Return the 62-bit integer that starts the diffusion noise of a sample: a hash of the run's seed and its id."""
    digest = hashlib.blake2b(f"{seed}\x1f{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
