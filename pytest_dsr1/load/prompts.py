"""Which prompts a session sends: token ids that no prefix cache has seen before.

A prompt is a run of consecutive ids, (start + j) mod V, so its start decides all of it. Starts are drawn once for the
whole session, without replacement, and dealt out to the points in sweep order: a point that is run alone, or resumed,
gets what it would have had within the sweep.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pytest_dsr1.core.config import Point, SweepConfig

TokenIds = npt.NDArray[np.int64]

#: Which draw a generator is for; with the session's seed, and a point's place, it seeds the generator.
_FIRST_IDS, _LENGTHS = 0, 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, as the ids it is made of rather than the ids themselves.

    :param first: Its first id.
    :param second: The id at which it goes on, consecutively: first + 1, or the other half of a unique pair.
    :param input_tokens: How many ids it has, at least 1.
    :param output_tokens: How many tokens are asked for, at least 1.
    """

    first: int
    second: int
    input_tokens: int
    output_tokens: int

    def ids(self, vocab_size: int) -> TokenIds:
        """The token ids, all below `vocab_size`. shape (input_tokens,)"""
        ids = np.arange(self.second - 1, self.second - 1 + self.input_tokens, dtype=np.int64) % vocab_size
        ids[0] = self.first
        return ids


@dataclass(frozen=True)
class PointPrompts:
    """The prompts of one point.

    :param warmups: Sent, and drained, before the measured ones.
    :param measured: In the order of sending.
    :param vocab_size: All ids are below it.
    """

    warmups: tuple[Prompt, ...]
    measured: tuple[Prompt, ...]
    vocab_size: int

    def __iter__(self) -> Iterator[Prompt]:
        yield from self.warmups
        yield from self.measured

    @cached_property
    def sha256(self) -> str:
        """Of every prompt, warm-ups first: its two lengths, then its ids, all as little-endian 32-bit integers."""
        digest = hashlib.sha256()
        for prompt in self:
            digest.update(np.array([prompt.input_tokens, prompt.output_tokens], dtype="<u4").tobytes())
            digest.update(prompt.ids(self.vocab_size).astype("<u4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PromptPlan:
    """The first ids of every prompt of a session, from which each point takes its own.

    :param config: What the session measures.
    :param vocab_size: V, the size of the vocabulary without added tokens.
    :param pairs: First and second id of each prompt, in sweep order. shape (prompts of the session, 2)
    """

    config: SweepConfig
    vocab_size: int
    pairs: TokenIds

    def at(self, point: Point) -> PointPrompts:
        """The prompts of `point`, which is one of the session's.

        :raises ValueError: if it is not.
        """
        points = self.config.points
        if point not in points:
            raise ValueError(f"{point.id} is not a point of this session; it has {', '.join(p.id for p in points)}")
        place = points.index(point)
        offset = sum(_count(self.config, earlier) for earlier in points[:place])
        count = _count(self.config, point)
        # A generator of the point's own: what it draws does not depend on the points before it.
        random = np.random.default_rng((self.config.prompt_seed, _LENGTHS, place))
        low_in, low_out = (_shortest(self.config, length) for length in (point.isl, point.osl))
        inputs = random.integers(low_in, point.isl, size=count, endpoint=True)
        outputs = random.integers(low_out, point.osl, size=count, endpoint=True)
        rows = np.column_stack((self.pairs[offset : offset + count], inputs, outputs)).tolist()
        prompts = tuple(Prompt(*row) for row in rows)
        warmups = self.config.num_warmups_at(point)
        return PointPrompts(prompts[:warmups], prompts[warmups:], self.vocab_size)


def plan_prompts(config: SweepConfig, vocab_size: int) -> PromptPlan:
    """Draw the first ids of all prompts of a session, warm-ups and every scenario included.

    Each prompt has a start of its own while the vocabulary has enough ids; beyond that, the first two ids are a pair
    of its own.

    :raises ValueError: if the prompts cannot be told apart by their first two ids: too many, or too short.
    """
    if vocab_size < 1:
        raise ValueError(f"a vocabulary has at least 1 token, got {vocab_size}")
    total = sum(_count(config, point) for point in config.points)
    random = np.random.default_rng((config.prompt_seed, _FIRST_IDS))
    if total <= vocab_size:
        firsts = random.choice(vocab_size, total, replace=False)
        return PromptPlan(config, vocab_size, np.column_stack((firsts, (firsts + 1) % vocab_size)))
    if total > vocab_size**2:
        raise ValueError(
            f"{total} prompts cannot each begin with a pair of ids of their own: a vocabulary of {vocab_size} tokens "
            f"has {vocab_size**2} pairs; measure fewer points or prompts in one session"
        )
    for scenario in config.scenarios:
        if _shortest(config, scenario.isl) < 2:
            raise ValueError(
                f"ISL {scenario.isl} at range ratio {config.random_range_ratio:g} allows prompts of 1 token, too short "
                f"for a pair of ids of their own, which {total} prompts need with a vocabulary of {vocab_size} tokens; "
                "ask for a longer ISL or fewer prompts"
            )
    pairs = random.choice(vocab_size**2, total, replace=False)
    return PromptPlan(config, vocab_size, np.column_stack((pairs // vocab_size, pairs % vocab_size)))


def _count(config: SweepConfig, point: Point) -> int:
    return config.num_warmups_at(point) + config.num_prompts_at(point)


def _shortest(config: SweepConfig, length: int) -> int:
    return max(1, math.floor(config.random_range_ratio * length))
