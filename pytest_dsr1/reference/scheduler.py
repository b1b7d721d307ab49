"""Continuous batching: decides which tokens each forward pass computes.

Without input, output or a clock; one call of `Scheduler.step` is one forward pass. Running sequences occupy the cache's
slots from 0 without a gap, so that a decode step reads contiguous memory. Prompts are computed in chunks and in order
of arrival, several in one pass if they fit. At most one prompt is partly computed; it has the slot after the running
ones.
There is no prefix cache: every prompt is computed completely.
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
    """Why a sequence ended, as the API names it."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of consecutive tokens, and of the most likely alternatives.

    :param logprobs: shape (tokens,)
    :param top_ids: The alternatives, most likely first. shape (tokens, top)
    :param top_logprobs: shape (tokens, top)
    """

    logprobs: Array
    top_ids: Ints
    top_logprobs: Array

    @classmethod
    def of(cls, logits: Array, tokens: Ints, top: int) -> Scores:
        """Score `tokens` by the logits of their positions; overwrites `logits`.

        :param logits: shape (tokens, vocab)
        :param tokens: shape (tokens,)
        """
        logprobs = log_softmax(logits)
        best = logprobs.argmax(axis=1)[:, None] if top == 1 else np.argsort(-logprobs, axis=1, kind="stable")[:, :top]
        return cls(logprobs[np.arange(len(tokens)), tokens], best, np.take_along_axis(logprobs, best, axis=1))


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One prompt and the tokens generated from it.

    :param prompt: At least one id. shape (tokens,)
    :param max_tokens: Largest number of tokens to generate, at least 1.
    :param on_token: Called after each new token; may set `finish_reason` to end the sequence there.
    :param temperature: 0: the most likely token; otherwise tokens are drawn by the sequence's own generator.
    :param stop_ids: Ids that end the sequence.
    :param top_logprobs: Number of alternatives to score for each token; None: no scores.
    :param score_prompt: Whether to score the prompt's tokens, too, except the first, which nothing predicts.
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
        """Draw a token from softmax(logits / temperature), by the Gumbel-max trick.

        :param logits: shape (vocab,)
        """
        if self._random is None:
            self._random = np.random.default_rng(self.seed)
        return int((logits / self.temperature + self._random.gumbel(size=len(logits))).argmax())


class Scheduler:
    """The waiting and the running sequences.

    :param max_running: Largest number of sequences decoded at a time; the others wait.
    :param prefill_tokens: Largest number of prompt tokens in one pass.
    :param prefill_burst: Largest number of prompt tokens computed between two decode steps. It bounds the time for
        which new prompts delay the running sequences.
    :ivar prompt_tokens: Number of prompt tokens computed so far.
    :ivar generated_tokens: Number of tokens generated so far.
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
        """Number of sequences that hold a slot."""
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
        """Remove a sequence, waiting or running; if it has finished, nothing happens."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence is self._partial:
            self._cache.clear(len(self._running))
            self._partial = None
        elif sequence in self._running:
            self._remove(self._running.index(sequence))

    def step(self) -> None:
        """Compute one forward pass: prompts first, but a decode step after each burst."""
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
        """Append the next token to each of `sequences`; remove those that it ends.

        :param logits: shape (sequences, vocab)
        :param first: The slot of the first sequence; the others follow.
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
        # From the last slot to the first: if all end together, as in a benchmark of one length, no slot is moved.
        for slot in reversed(finished):
            self._remove(slot)

    def _remove(self, slot: int) -> None:
        """Free the slot of a running sequence and close the gap."""
        last = len(self._running) - 1
        self._cache.clear(slot)
        if slot != last:
            self._cache.move(last, slot)
            self._running[slot] = self._running[last]
        self._running.pop()
        if self._partial is not None:
            self._cache.move(last + 1, last)


def _score_prompt(sequence: Sequence, logits: Array, count: int) -> None:
    """Score the prompt tokens that the last `count` computed ones predict."""
    start = sequence.prefilled - count
    targets = sequence.prompt[start + 1 : sequence.prefilled + 1]
    if len(targets):
        top = sequence.top_logprobs or 0
        sequence.prompt_scores.append(Scores.of(logits[: len(targets)].copy(), targets, top))
