"""Continuous batching: whose tokens each forward pass computes. No input or output, no clock; one call is one pass.

Running sequences fill the cache's slots from 0 without a gap, so that a decode step reads contiguous memory. Prompts
are computed in chunks and in order of arrival, several in one pass where they fit; at most one is ever half done, and
holds the slot behind the running ones. There is no prefix cache: every prompt is computed whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from pytest_dsr1.reference.attention import Array, Chunk, Ints
from pytest_dsr1.reference.model import PREFILL_TOKENS, Model, log_softmax


class FinishReason(StrEnum):
    """Why a sequence ended, in the words of the API."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of consecutive tokens, with the likeliest in their place.

    :param logprobs: shape (tokens,)
    :param top_ids: Likeliest first. shape (tokens, top)
    :param top_logprobs: shape (tokens, top)
    """

    logprobs: Array
    top_ids: Ints
    top_logprobs: Array

    @classmethod
    def of(cls, logits: Array, tokens: Ints, top: int) -> Scores:
        """Score `tokens` by the logits of their places. shapes (tokens, vocab), (tokens,)"""
        logprobs = log_softmax(logits)
        best = logprobs.argmax(axis=1)[:, None] if top == 1 else np.argsort(-logprobs, axis=1, kind="stable")[:, :top]
        return cls(logprobs[np.arange(len(tokens)), tokens], best, np.take_along_axis(logprobs, best, axis=1))


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One prompt and what has been generated from it.

    :param prompt: At least one id. shape (tokens,)
    :param max_tokens: At least 1.
    :param on_token: Called after each new token; may set `finish_reason` itself, to end the sequence there.
    :param temperature: 0: the likeliest token; else it is drawn, by a generator of the sequence's own.
    :param stop_ids: Ids that end the sequence.
    :param top_logprobs: How many alternatives to score beside each token; None: no scores at all.
    :param score_prompt: Whether the prompt's tokens are scored too (but for the first, which nothing predicts).
    """

    prompt: Ints
    max_tokens: int
    on_token: Callable[[Sequence], None]
    temperature: float = 0.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    score_prompt: bool = False
    prefilled: int = 0
    generated: list[int] = field(default_factory=list)
    prompt_scores: list[Scores] = field(default_factory=list)
    generated_scores: list[Scores] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    _random: np.random.Generator | None = None

    def draw(self, logits: Array) -> int:
        """A token by softmax(logits / temperature): the largest after adding Gumbel noise. shape (vocab,)"""
        if self._random is None:
            self._random = np.random.default_rng(self.seed)
        return int((logits / self.temperature + self._random.gumbel(size=len(logits))).argmax())


class Scheduler:
    """Sequences that wait and run.

    :param max_running: Most sequences decoded at a time; the rest wait.
    :param prefill_tokens: Most prompt tokens in one pass.
    :param prefill_burst: Most prompt tokens computed between two decode steps while sequences are running: how long a
        burst of prompts, or a long one, may hold them up.
    :ivar prompt_tokens: Prompt tokens computed so far.
    :ivar generated_tokens: Tokens generated so far.
    """

    def __init__(
        self, model: Model, *, max_running: int = 128, prefill_tokens: int = PREFILL_TOKENS, prefill_burst: int = 2048
    ) -> None:
        self._model = model
        self.max_running = max_running
        self._prefill_tokens = prefill_tokens
        self._prefill_burst = prefill_burst
        self._cache = model.new_cache(1)
        self._waiting: deque[Sequence] = deque()
        self._partial: Sequence | None = None
        self._running: list[Sequence] = []
        self._since_decode = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running) + (self._partial is not None)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._partial)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; one that has finished is no error."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence is self._partial:
            self._cache.clear(len(self._running))
            self._partial = None
        elif sequence in self._running:
            self._remove(self._running.index(sequence))

    def step(self) -> None:
        """One forward pass: prompts first, but for a decode step after each burst of them."""
        due = self._running and self._since_decode >= self._prefill_burst
        if not due and (self._partial or self._waiting) and len(self._running) < self.max_running:
            self._prefill()
        elif self._running:
            self._decode()

    def _prefill(self) -> None:
        chunks: list[Chunk] = []
        sequences: list[Sequence] = []
        room = self._prefill_tokens
        while room and (self._partial or self._waiting) and len(self._running) + len(chunks) < self.max_running:
            sequence = self._partial or self._waiting.popleft()
            count = min(room, len(sequence.prompt) - sequence.prefilled)
            complete = sequence.prefilled + count == len(sequence.prompt)
            chunks.append(
                Chunk(len(self._running) + len(chunks), count, count if sequence.score_prompt else int(complete))
            )
            sequences.append(sequence)
            self._partial = None if complete else sequence
            room -= count
        longest = max(len(sequence.prompt) + sequence.max_tokens for sequence in sequences)
        self._cache.reserve(longest, len(self._running) + len(chunks))
        ids = np.concatenate(
            [s.prompt[s.prefilled : s.prefilled + chunk.count] for s, chunk in zip(sequences, chunks, strict=True)]
        )
        logits = self._model.prefill(self._cache, chunks, ids)
        self.prompt_tokens += len(ids)
        self._since_decode += len(ids)

        ends = np.cumsum([chunk.wanted for chunk in chunks]).tolist()
        for sequence, chunk, end in zip(sequences, chunks, ends, strict=True):
            sequence.prefilled += chunk.count
            if sequence.score_prompt:
                _score_prompt(sequence, logits[end - chunk.wanted : end], chunk.count)
        complete_ends = [
            end - 1 for sequence, end in zip(sequences, ends, strict=True) if sequence is not self._partial
        ]
        if complete_ends:
            started = sequences[: len(complete_ends)]
            first = len(self._running)
            self._running += started
            self._extend(started, logits[complete_ends], first)

    def _decode(self) -> None:
        self._since_decode = 0
        ids = np.array([sequence.generated[-1] for sequence in self._running], np.intp)
        self._extend(self._running.copy(), self._model.decode(self._cache, ids), 0)

    def _extend(self, sequences: list[Sequence], logits: Array, first: int) -> None:
        """Give each of `sequences`, which run in the slots from `first`, its next token; drop those that it ends.

        :param logits: shape (sequences, vocab)
        """
        tokens = logits.argmax(axis=1).tolist()
        self.generated_tokens += len(tokens)
        finished = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if sequence.temperature > 0:
                token = sequence.draw(logits[row])
            if sequence.top_logprobs is not None:
                scores = Scores.of(logits[row : row + 1].copy(), np.array([token]), sequence.top_logprobs)
                sequence.generated_scores.append(scores)
            sequence.generated.append(token)
            if token in sequence.stop_ids:
                sequence.finish_reason = FinishReason.STOP
            elif len(sequence.generated) == sequence.max_tokens:
                sequence.finish_reason = FinishReason.LENGTH
            sequence.on_token(sequence)
            if sequence.finish_reason is not None:
                finished.append(first + row)
        # From the back: where all end together, as in a benchmark of one length, nothing has to be moved.
        for slot in reversed(finished):
            self._remove(slot)

    def _remove(self, slot: int) -> None:
        """Free a running sequence's slot, and close the gap."""
        last = len(self._running) - 1
        self._cache.clear(slot)
        if slot != last:
            self._cache.move(last, slot)
            self._running[slot] = self._running[last]
        self._running.pop()
        if self._partial is not None:
            self._cache.move(last + 1, last)


def _score_prompt(sequence: Sequence, logits: Array, count: int) -> None:
    """Score the prompt tokens that the `count` newest ones predict; the prompt's last token predicts none of it."""
    start = sequence.prefilled - count
    targets = sequence.prompt[start + 1 : sequence.prefilled + 1]
    if len(targets):
        top = sequence.top_logprobs or 0
        sequence.prompt_scores.append(Scores.of(logits[: len(targets)].copy(), targets, top))
