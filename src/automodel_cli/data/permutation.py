"""A shuffle without a table: the seeded permutation of ``range(size)``, one element at a time.

A table of 1e9 windows costs 8 GB and minutes before the first batch; a resumed run needs only a few
thousand entries of it. So the order is a *function*: a Feistel network over pairs ``(left, right)`` of a
grid ``rows x columns >= size`` whose sides are about ``sqrt(size)``. Each round adds a hash of one
half to the other half, which is invertible whatever the hash is, so every element comes out exactly once. The
grid has at most ``rows - 1`` cells too many; a value that lands in one of them goes through the network again
("cycle walking"), which keeps it a bijection of ``range(size)`` and happens about once in ``sqrt(size)``.

Cost: O(1) memory and start-up, about 0.1 us an element when asked for thousands at a time.

J. Black, P. Rogaway: Ciphers with Arbitrary Finite Domains, CT-RSA 2002 (generalised Feistel, cycle walking).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

# Named in every plan: another number of rounds or another hash is another order of the data.
ALGORITHM = "feistel-8/1"
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd: spreads consecutive counters


def _mix(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser, in place: every input bit reaches every output bit (uint64 -> uint64)."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def seed_word(seed: int, purpose: str) -> np.uint64:
    """64 bits that depend on every bit of ``seed`` (any size or sign) and on what they are used for."""
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


class Permutation:
    """The order of ``range(size)`` in each epoch, as a pure function of (seed, purpose, epoch, position).

    Sizes up to 2**62. Two purposes with one seed are unrelated orders.
    """

    def __init__(self, size: int, *, seed: int, purpose: str = "windows") -> None:
        assert 0 < size <= 1 << 62, size
        self.size = size
        self._rows = math.isqrt(size - 1) + 1
        self._columns = -(-size // self._rows)
        self._word = seed_word(seed, purpose)

    def __call__(self, positions: np.ndarray, epochs: np.ndarray | int) -> np.ndarray:
        """Elements at ``positions`` (int [N], in ``range(size)``) of the orders of ``epochs`` ([N] or one).

        Returns:
            int64 [N].
        """
        values = np.array(positions, dtype=np.uint64)
        epoch_words = np.broadcast_to(np.asarray(epochs, dtype=np.uint64), values.shape)
        values = self._network(values, epoch_words)
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            walked = self._network(values[outside], epoch_words[outside])
            values[outside] = walked
            outside = outside[walked >= self.size]
        return values.astype(np.int64)

    def _network(self, values: np.ndarray, epoch_words: np.ndarray) -> np.ndarray:
        """One pass of all rounds over the grid: a bijection of ``range(rows * columns)``; uint64 [N]."""
        left, right = np.divmod(values, np.uint64(self._columns))
        base = _mix(epoch_words * _GOLDEN + self._word)
        for number in range(_ROUNDS):
            if number % 2 == 0:
                _add_hash(left, right, base, number, self._rows)
            else:
                _add_hash(right, left, base, number, self._columns)
        left *= np.uint64(self._columns)
        left += right
        return left


def _add_hash(target: np.ndarray, source: np.ndarray, base: np.ndarray, number: int, modulus: int) -> None:
    """``target = (target + hash(source, base, number)) mod modulus``, in place; modulus <= 2**31."""
    key = np.uint64(((number + 1) * int(_GOLDEN)) & 0xFFFF_FFFF_FFFF_FFFF)
    hashed = _mix((source ^ base) + key)
    # The high 32 bits times the modulus, shifted: uniform in range(modulus) without a division.
    hashed >>= np.uint64(32)
    hashed *= np.uint64(modulus)
    hashed >>= np.uint64(32)
    target += hashed
    np.subtract(target, np.uint64(modulus), out=target, where=target >= modulus)
