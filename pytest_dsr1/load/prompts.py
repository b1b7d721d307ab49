"""The prompts of a session, unknown to any prefix cache, and their requests.

A prompt is a run of consecutive ids, (start + j) mod V, so its start determines all of it. Starts are drawn once for
the whole session, without replacement, and assigned to the points in sweep order. A point that is run alone, or
resumed, gets the same prompts as within the sweep.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pytest_dsr1.core.config import Point, SweepConfig

TokenIds = npt.NDArray[np.int64]

#: What a generator draws: part of its seed, with the session's seed and, for lengths, the point's place in the sweep.
_FIRST_IDS, _LENGTHS = 0, 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, described by its first two ids and its lengths.

    :param first: The first id.
    :param second: The second id, from which the others follow consecutively: first + 1, or the second half of a unique
        pair.
    :param input_tokens: Number of ids, at least 1.
    :param output_tokens: Number of tokens asked for, at least 1.
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

    :param warmups: Prompts that are sent, and completed, before the measured ones.
    :param measured: Measured prompts in the order of sending.
    :param vocab_size: All ids are smaller.
    """

    warmups: tuple[Prompt, ...]
    measured: tuple[Prompt, ...]
    vocab_size: int

    def __iter__(self) -> Iterator[Prompt]:
        yield from self.warmups
        yield from self.measured

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all prompts, warm-ups first.

        For each prompt: input and output length, then its ids, all as little-endian unsigned 32-bit integers.
        """
        digest = hashlib.sha256()
        for prompt in self:
            digest.update(np.array([prompt.input_tokens, prompt.output_tokens], dtype="<u4").tobytes())
            digest.update(prompt.ids(self.vocab_size).astype("<u4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PromptPlan:
    """The first two ids of every prompt of a session; each point takes its share.

    :param points: The points that the session measures.
    :param vocab_size: V, the size of the vocabulary without added tokens.
    :param pairs: First and second id of each prompt, in sweep order. shape (prompts of the session, 2)
    """

    config: SweepConfig
    points: tuple[Point, ...]
    vocab_size: int
    pairs: TokenIds

    def at(self, point: Point) -> PointPrompts:
        """The prompts of one of the session's points.

        :raises ValueError: if `point` is not one of them.
        """
        points = self.points
        if point not in points:
            raise ValueError(f"{point.id} is not a point of this session; it has {', '.join(p.id for p in points)}")
        place = points.index(point)
        offset = sum(_count(self.config, earlier) for earlier in points[:place])
        pairs = self.pairs[offset : offset + _count(self.config, point)]
        # Each point has its own generator, so its lengths do not depend on the points before it.
        random = np.random.default_rng((self.config.prompt_seed, _LENGTHS, place))
        low_in, low_out = (_shortest(self.config, length) for length in (point.isl, point.osl))
        inputs = random.integers(low_in, point.isl, size=len(pairs), endpoint=True)
        outputs = random.integers(low_out, point.osl, size=len(pairs), endpoint=True)
        prompts = tuple(Prompt(*row) for row in np.column_stack((pairs, inputs, outputs)).tolist())
        warmups = self.config.num_warmups_at(point)
        return PointPrompts(prompts[:warmups], prompts[warmups:], self.vocab_size)

    def with_point(self, point: Point) -> PromptPlan:
        """The plan with one more point, whose prompts begin like none before.

        :raises ValueError: The vocabulary has too few ids left.
        """
        if point in self.points:
            return self
        count, size = _count(self.config, point), self.vocab_size
        random = np.random.default_rng((self.config.prompt_seed, _FIRST_IDS, len(self.points)))
        unused = np.setdiff1d(np.arange(size), self.pairs[:, 0])
        if count <= len(unused):
            firsts = random.choice(unused, count, replace=False)
            more = np.column_stack((firsts, (firsts + 1) % size))
        elif len(self.pairs) + count <= size**2 and _shortest(self.config, point.isl) > 1:
            drawn = random.choice(size**2, len(self.pairs) + count, replace=False)
            fresh = drawn[~np.isin(drawn, self.pairs @ [size, 1])][:count]
            more = np.column_stack((fresh // size, fresh % size))
        else:
            raise ValueError(
                f"{point.id} needs {count} prompts that begin like none before, and a vocabulary of {size} tokens has "
                "too few left; measure fewer points or prompts in one session"
            )
        return replace(self, points=(*self.points, point), pairs=np.concatenate((self.pairs, more)))


def plan_prompts(config: SweepConfig, vocab_size: int) -> PromptPlan:
    """Draw the first ids of all prompts of a session.

    Warm-ups and all scenarios are included. If the vocabulary has at least as many ids as there are prompts, each
    prompt has a unique first id. Otherwise each prompt has a unique pair of first two ids.

    :raises ValueError: if unique pairs are impossible: there are too many prompts, or a prompt may have one token only.
    """
    if vocab_size < 1:
        raise ValueError(f"the vocabulary size must be at least 1, got {vocab_size}")
    total = sum(_count(config, point) for point in config.points)
    random = np.random.default_rng((config.prompt_seed, _FIRST_IDS))
    if total <= vocab_size:
        firsts = random.choice(vocab_size, total, replace=False)
        return PromptPlan(config, config.points, vocab_size, np.column_stack((firsts, (firsts + 1) % vocab_size)))
    _require_pairs(config, [scenario.isl for scenario in config.scenarios], total, vocab_size)
    pairs = random.choice(vocab_size**2, total, replace=False)
    return PromptPlan(config, config.points, vocab_size, np.column_stack((pairs // vocab_size, pairs % vocab_size)))


def _require_pairs(config: SweepConfig, isls: Iterable[int], total: int, vocab_size: int) -> None:
    """Check that `total` prompts can differ in their first two ids."""
    if total > vocab_size**2:
        raise ValueError(
            f"{total} prompts need as many different pairs of first ids, but a vocabulary of {vocab_size} tokens "
            f"has only {vocab_size**2} pairs; measure fewer points or prompts in one session"
        )
    for isl in isls:
        if _shortest(config, isl) < 2:
            raise ValueError(
                f"ISL {isl} at range ratio {config.random_range_ratio:g} allows prompts of 1 token, but "
                f"{total} prompts from a vocabulary of {vocab_size} tokens differ only in their first two tokens; "
                "set a longer ISL or fewer prompts"
            )


def _count(config: SweepConfig, point: Point) -> int:
    return config.num_warmups_at(point) + config.num_prompts_at(point)


def _shortest(config: SweepConfig, length: int) -> int:
    return max(1, math.floor(config.random_range_ratio * length))


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be written.

    :param buffers: The bytes of the request, in order.
    :param input_tokens: Length of its prompt.
    :param output_tokens: Tokens that it asks for.
    """

    buffers: tuple[bytes | memoryview, ...]
    input_tokens: int
    output_tokens: int


def render_requests(path: str, host: str, model: str, prompts: PointPrompts) -> list[Request]:
    """Render one HTTP/1.1 request per prompt, warm-ups first.

    Requests are greedy, streamed, and for the full output length. Prompts are runs of consecutive ids, so every prompt
    is a slice of one text, "0,1,2,…", which all requests share. A request is three buffers (head, slice, tail) for one
    gathering write (`writev`): sending it is one system call and copies nothing.

    :param path: Path of the completions endpoint.
    :param host: The Host header.
    :param model: Name of the served model.
    """
    longest = max((prompt.input_tokens for prompt in prompts), default=0)
    numbers = [b"%d" % (number % prompts.vocab_size) for number in range(prompts.vocab_size + longest)]
    # Where each number begins in the text, and the text's end.
    places = list(accumulate((len(number) + 1 for number in numbers), initial=0))
    text = memoryview(b",".join(numbers))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n"
        "User-Agent: pytest-dsr1\r\nContent-Type: application/json\r\nContent-Length: "
    ).encode()
    opening = f'{{"model":{json.dumps(model)},"prompt":['.encode()
    tails = {
        tokens: (
            f'],"max_tokens":{tokens},"temperature":0,"ignore_eos":true,"stream":true,'
            '"stream_options":{"include_usage":true}}'
        ).encode()
        for tokens in {prompt.output_tokens for prompt in prompts}
    }
    requests = []
    for prompt in prompts:
        start, end = places[prompt.second], places[prompt.second + prompt.input_tokens - 1] - 1
        run = text[start : max(start, end)]
        first = b"%d," % prompt.first if len(run) else b"%d" % prompt.first
        tail = tails[prompt.output_tokens]
        size = len(opening) + len(first) + len(run) + len(tail)
        buffers = (b"%b%d\r\n\r\n%b%b" % (head, size, opening, first), run, tail)
        requests.append(Request(buffers, prompt.input_tokens, prompt.output_tokens))
    return requests
