"""Multi-head latent attention over a cache of latents, for decoding and prefill.

Three ideas make it fast in NumPy:

- A token is a column, [rope key | latent | 1]. The first two parts are its key, the last two its value, so the latent
  is stored once. Both matrix products of a decode step can read the columns through BLAS without a copy, and half the
  memory is read.
- The row of ones makes the weighted sum compute softmax's denominator, too.
- Softmax does not subtract the maximum: a sum of exponentials is as exact without, unless it overflows or underflows.
  Those rare sums are computed again with the maximum subtracted. Columns beyond a slot's length are zero, the row of
  ones included, so slots of different lengths can be computed together without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

#: Denominators outside this range are computed again with the maximum subtracted. The range leaves room in float32 for
#: the numerators, which may be larger.
SAFE_SUM = (1e-25, 1e25)
#: Cost of one more batched product, measured in cache positions read. Slots are split into runs if that saves more.
RUN_OVERHEAD = 2000
#: Number of scores of a block of queries: 1 MiB, about the size of a second-level cache.
BLOCK_SCORES = 1 << 18
MAX_BLOCK = 32


class LatentCache:
    """The keys and values of every token, in numbered slots of equal capacity.

    :param slots: Initial number of slots.
    :param capacity: Initial number of tokens that a slot can hold.
    :ivar lengths: Number of tokens in each slot. shape (slots,)
    """

    def __init__(self, layers: int, slots: int, rope_dim: int, latent_dim: int, capacity: int = 256) -> None:
        self.rope_dim = rope_dim
        self.lengths = np.zeros(0, np.intp)
        self._tokens = np.zeros((layers, 0, rope_dim + latent_dim + 1, 0), np.float32)
        self.reserve(capacity, slots)

    @property
    def slots(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Number of tokens that a slot can hold at present."""
        return int(self._tokens.shape[3])

    def layer(self, index: int) -> Array:
        """shape (slots, rope + latent + 1, capacity)"""
        return self._tokens[index]  # type: ignore[no-any-return]  # NumPy types an integer index as Any

    def reserve(self, tokens: int, slots: int = 0) -> None:
        """Grow to hold at least `tokens` per slot and `slots` slots; keeps the contents."""
        if tokens <= self.capacity and slots <= self.slots:
            return
        # The distance between rows is an odd number of 64-byte cache lines, never a power of two, so that the elements
        # of a column fall into different cache sets. (Measured: the writes of a step took 16 us at 1,024 positions and
        # 3 us at 1,040.)
        capacity = -(-tokens // 32) * 32 + 16 if tokens > self.capacity else self.capacity
        slots = max(slots, 2 * self.slots) if slots > self.slots else self.slots
        layers, _, rows, _ = self._tokens.shape
        # np.zeros does not touch memory, so the capacity for long contexts costs none until it is used.
        grown = np.zeros((layers, slots, rows, capacity), np.float32)
        for slot in np.flatnonzero(self.lengths):
            used = self.lengths[slot]
            grown[:, slot, :, :used] = self._tokens[:, slot, :, :used]
        self._tokens = grown
        self.lengths = np.pad(self.lengths, (0, slots - self.slots))

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        used = self.lengths[slot]
        self._tokens[:, slot, :, :used] = 0
        self.lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Move a slot's tokens to an empty slot."""
        used = self.lengths[source]
        self._tokens[:, target, :, :used] = self._tokens[:, source, :, :used]
        self.lengths[target] = used
        self.clear(source)


class DecodeBatch:
    """One new token in each of the first `count` slots of a cache.

    :ivar positions: Position of each token in its sequence. shape (count,)
    :ivar outputs: The rows whose hidden states are needed after the last layer; None: all.
    """

    outputs: Ints | None = None

    def __init__(self, cache: LatentCache, count: int) -> None:
        self._cache = cache
        self._slots = np.arange(count)
        self.positions = cache.lengths[:count].copy()
        cache.reserve(int(self.positions.max()) + 1)
        self._runs = split_runs(self.positions + 1)

    def store(self, layer: int, rows: Array) -> None:
        """Append each token's key, latent and 1 to its slot.

        :param rows: shape (count, rope + latent + 1)
        """
        self._cache.layer(layer)[self._slots, :, self.positions] = rows

    def attend(self, layer: int, queries: Array) -> Array:
        """The attended latent of every head.

        :param queries: shape (count, heads, rope + latent)
        :return: shape (count, heads, latent)
        """
        tokens, rope = self._cache.layer(layer), self._cache.rope_dim
        keys, values = tokens[:, :-1], tokens[:, rope:].transpose(0, 2, 1)
        sums = np.empty((*queries.shape[:2], values.shape[2]), np.float32)
        for start, stop, longest in self._runs:
            scores = queries[start:stop] @ keys[start:stop, :, :longest]
            np.exp(scores, out=scores)
            np.matmul(scores, values[start:stop, :longest], out=sums[start:stop])
        if not _is_safe(sums[..., -1]):
            for slot, position in enumerate(self.positions):
                seen = tokens[slot, :, : position + 1]
                sums[slot] = _weighted_sums(queries[slot : slot + 1], seen, rope, shifted=True)[0]
        return np.divide(sums[..., :-1], sums[..., -1:], dtype=np.float32)

    def advance(self) -> None:
        """Add the new tokens to `lengths`, after all layers have stored theirs."""
        self._cache.lengths[: len(self.positions)] += 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` tokens of the prompt in `slot`.

    :param wanted: Logits are needed for so many of the last tokens.
    """

    slot: int
    count: int
    wanted: int


class PrefillBatch:
    """Chunks of several prompts, concatenated. Attributes are those of `DecodeBatch`."""

    outputs: Ints | None

    def __init__(self, cache: LatentCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        self._chunks = [(chunk, int(cache.lengths[chunk.slot])) for chunk in chunks]
        cache.reserve(max(start + chunk.count for chunk, start in self._chunks))
        self.positions = np.concatenate([np.arange(start, start + chunk.count) for chunk, start in self._chunks])
        ends = np.cumsum([chunk.count for chunk in chunks])
        self.outputs = np.concatenate(
            [np.arange(end - chunk.wanted, end) for chunk, end in zip(chunks, ends, strict=True)]
        )

    def store(self, layer: int, rows: Array) -> None:
        first = 0
        for chunk, start in self._chunks:
            end = first + chunk.count
            self._cache.layer(layer)[chunk.slot, :, start : start + chunk.count] = rows[first:end].T
            first = end

    def attend(self, layer: int, queries: Array) -> Array:
        """As in `DecodeBatch`, but causal.

        :param queries: Those of all tokens, or of the wanted rows only.
        """
        every, rope = len(queries) == len(self.positions), self._cache.rope_dim
        attended = np.empty((*queries.shape[:2], self._cache.layer(layer).shape[1] - rope - 1), np.float32)
        row = 0
        for chunk, start in self._chunks:
            count = chunk.count if every else chunk.wanted
            end = start + chunk.count
            tokens = self._cache.layer(layer)[chunk.slot]
            size = max(8, min(MAX_BLOCK, BLOCK_SCORES // (queries.shape[1] * end)))
            for first in range(0, count, size):
                last = min(first + size, count)
                seen = tokens[:, : end - count + last]
                block = slice(row + first, row + last)
                sums = _weighted_sums(queries[block], seen, rope)
                if not _is_safe(sums[..., -1]):
                    sums = _weighted_sums(queries[block], seen, rope, shifted=True)
                np.divide(sums[..., :-1], sums[..., -1:], out=attended[block])
            row += count
        return attended

    def advance(self) -> None:
        for chunk, start in self._chunks:
            self._cache.lengths[chunk.slot] = start + chunk.count


def split_runs(lengths: Ints) -> list[tuple[int, int, int]]:
    """Group neighbouring slots into runs that are computed together.

    A run is computed as if all of its slots were as long as the longest.

    :return: (start, stop, longest) of each run
    """
    longest = int(lengths.max())
    if longest * len(lengths) - int(lengths.sum()) < RUN_OVERHEAD:
        return [(0, len(lengths), longest)]
    runs = [(0, 1, int(lengths[0]))]
    for slot, length in enumerate(lengths.tolist()[1:], 1):
        start, stop, longest = runs[-1]
        joined = max(longest, length)
        if joined * (stop + 1 - start) - longest * (stop - start) - length < RUN_OVERHEAD:
            runs[-1] = (start, slot + 1, joined)
        else:
            runs.append((slot, slot + 1, length))
    return runs


def _weighted_sums(queries: Array, tokens: Array, rope_dim: int, *, shifted: bool = False) -> Array:
    """Causal weighted sums for a block of queries, the last of `tokens`.

    :param queries: shape (block, heads, rope + latent)
    :param tokens: shape (rope + latent + 1, seen)
    :param shifted: Whether to subtract each row's maximum first, which is slower.
    :return: Numerators and, last, the denominator. shape (block, heads, latent + 1)
    """
    block, heads, width = queries.shape
    scores: Array = (queries.reshape(-1, width) @ tokens[:-1]).reshape(block, heads, -1)
    if shifted:
        scores[..., -block:][np.broadcast_to(_FUTURE[block], (block, heads, block))] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    if block > 1:
        scores[..., -block:] *= _PAST[block]
    return (scores.reshape(block * heads, -1) @ tokens[rope_dim:].T).reshape(block, heads, -1)


def _is_safe(denominators: Array) -> bool:
    """Whether all denominators lie within SAFE_SUM; nan does not."""
    low, high = SAFE_SUM
    return bool(denominators.min() > low and denominators.max() < high) if denominators.size else True


class _Triangles(dict[int, npt.NDArray[Any]]):
    """Causal masks within a block, by block size; each is made once.

    :param future: Whether the mask is true for the tokens that come later, else 1 for the others.
    """

    def __init__(self, *, future: bool) -> None:
        super().__init__()
        self._future = future

    def __missing__(self, block: int) -> npt.NDArray[Any]:
        past = np.tri(block, dtype=np.float32)[:, None, :]
        self[block] = past == 0 if self._future else past
        return self[block]


_PAST = _Triangles(future=False)
_FUTURE = _Triangles(future=True)
