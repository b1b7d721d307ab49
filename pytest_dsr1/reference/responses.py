"""A request in progress: its sequences, and the bytes of its answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pytest_dsr1.reference import completions
from pytest_dsr1.reference.completions import CompletionRequest
from pytest_dsr1.reference.scheduler import FinishReason, Sequence
from pytest_dsr1.reference.text import TextStream, Vocabulary

_numbers = itertools.count()


class Response:
    """The answer to one request, streamed or not.

    :param eos: Token ids that end a text, unless the request ignores them.
    :param write: Called with each event of a stream, its blank line included. None: the answer is read from `body`.
    :ivar done: Set when every sequence has finished.
    """

    def __init__(
        self,
        request: CompletionRequest,
        vocabulary: Vocabulary,
        eos: frozenset[int],
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.id = f"cmpl-{time.time_ns():x}-{next(_numbers)}"
        self.created = int(time.time())
        self.request = request
        self.vocabulary = vocabulary
        self.write = write
        self.done = asyncio.Event()
        self._choices = [_Choice(self, index, prompt, eos) for index, prompt in enumerate(request.prompts)]
        self._unfinished = len(self._choices)

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences for the scheduler to run."""
        return [choice.sequence for choice in self._choices]

    @property
    def usage(self) -> dict[str, Any]:
        """Usage so far, over all choices."""
        return completions.usage(
            sum(len(choice.sequence.prompt) for choice in self._choices),
            sum(len(choice.sequence.generated) for choice in self._choices),
        )

    def finished_one(self) -> None:
        self._unfinished -= 1
        if not self._unfinished:
            self.done.set()

    def render(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        return completions.completion(self.id, self.created, self.request.model, choices, usage)

    def body(self) -> bytes:
        """The whole answer to a request that does not stream."""
        return self.render([choice.object() for choice in self._choices], self.usage)

    def closing_events(self) -> bytes:
        """The events after a stream's last token: usage, if asked for, and [DONE]."""
        usage = _event(self.render([], self.usage)) if self.request.include_usage else b""
        return usage + _event(b"[DONE]")


class _Choice:
    """The choice of one prompt."""

    def __init__(self, response: Response, index: int, prompt: tuple[int, ...], eos: frozenset[int]) -> None:
        request = response.request
        self._response = response
        self._index = index
        self._text = TextStream(response.vocabulary, request.stops)
        self._parts: list[str] = []
        self._scored = 0
        scored = request.logprobs is not None
        self.sequence = Sequence(
            prompt=np.array(prompt, np.intp),
            max_tokens=request.max_tokens,
            on_token=self._stream_token if response.write else self._keep_token,
            temperature=request.temperature,
            seed=None if request.seed is None else request.seed + index,
            stop_ids=frozenset() if request.ignore_eos else eos,
            top_logprobs=request.logprobs,
            score_prompt=request.echo and scored,
        )
        # Almost all events differ only in their token's text. The parts before and after it are rendered once. The text
        # is the last string in an event, so a model's name that looks like the placeholder does not matter.
        plain = response.render([completions.choice(index, "\0", None, None, None)], None)
        self._before, _, self._after = _event(plain).rpartition(rb'"\u0000"')
        self._plain = not (scored or request.stops or request.continuous_usage)
        self._json = response.vocabulary.token_json

    def object(self) -> dict[str, Any]:
        """The finished choice."""
        return self._object("".join(self._parts), self._new_logprobs())

    def _keep_token(self, sequence: Sequence) -> None:
        self._parts.append(self._next_text(sequence))
        if sequence.finish_reason is not None:
            self._response.finished_one()

    def _stream_token(self, sequence: Sequence) -> None:
        write = self._response.write
        assert write is not None
        if self._plain and sequence.finish_reason is None and len(sequence.generated) > 1 and self._text.settled:
            text = self._json[sequence.generated[-1]]
            if text is not None:
                write(self._before + text + self._after)
                return
        choice = self._object(self._next_text(sequence), self._new_logprobs())
        usage = self._response.usage if self._response.request.continuous_usage else None
        write(_event(self._response.render([choice], usage)))
        if sequence.finish_reason is not None:
            self._response.finished_one()

    def _next_text(self, sequence: Sequence) -> str:
        """The text that the newest token adds; ends the sequence at a stop string."""
        text = self._text.push(sequence.generated[-1])
        if sequence.finish_reason is not None and self._text.stopped_by is None:
            text += self._text.flush()
        if self._text.stopped_by is not None:
            sequence.finish_reason = FinishReason.STOP
        if self._response.request.echo and len(sequence.generated) == 1:
            text = self._response.vocabulary.decode(sequence.prompt.tolist()) + text
        return text

    def _object(self, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        reason = self.sequence.finish_reason
        matched: str | int | None = self._text.stopped_by
        if matched is None and reason is FinishReason.STOP:
            matched = self.sequence.generated[-1]
        return completions.choice(self._index, text, logprobs, None if reason is None else reason.value, matched)

    def _new_logprobs(self) -> dict[str, Any] | None:
        """Log-probabilities since the last call; at first with those of an echoed prompt."""
        sequence, top = self.sequence, self._response.request.logprobs
        if top is None:
            return None
        with_prompt = sequence.score_prompt and not self._scored
        tokens, scores = sequence.generated[self._scored :], sequence.generated_scores[self._scored :]
        self._scored = len(sequence.generated)
        if with_prompt:
            tokens, scores = [*sequence.prompt.tolist(), *tokens], [*sequence.prompt_scores, *scores]
        return completions.logprobs_object(
            self._response.vocabulary, tokens, scores, unscored_first=with_prompt, top=top
        )


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
