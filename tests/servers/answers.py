"""What a scripted server sends for one request, and when: every good answer and every bad one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered. Places are numbers of events with `choices`, from 0 on: "at 5" is before the sixth.

    :param ttft_s: From the arrival of the request to its first event.
    :param interval_s: From one send to the next.
    :param text: Of every event.
    :param newline: What lines of the event stream end with.
    :param comments: Put a comment before every event.
    :param piece_bytes: Cut what is sent into pieces of this size, `piece_gap_s` apart; 0: not at all.
    :param generated: Tokens that are generated; None: as many as asked for.
    :param prompt_tokens: What usage says; None: the truth.
    :param cached_tokens: What usage says; None: nothing.
    :param usage: In an event without choices, in the last event with choices, in every event, or not at all.
    :param done: Whether `[DONE]` ends the stream.
    :param bad_json_at: This event is not JSON.
    :param error_at: Here an error event is sent, and the stream ended.
    :param stall_at: Here it stops, the connection left open.
    :param reset_at: Here the connection is reset; at 0, before any byte.
    :param close_at: Here the connection is closed in good order.
    :param status: Another one than 200 is sent with `message`, as SGLang does.
    :param raw: Sent instead of a response.
    :param framing: Chunked, or up to the end of the connection.
    :param after: The connection is kept, closed as announced by a header, or closed without a word.
    :param hang_up: Close the connection on arrival of the request, unanswered.
    """

    ttft_s: float = 0.0
    interval_s: float = 0.0
    tokens_per_event: int = 1
    events_per_send: int = 1
    text: str = " token"
    newline: str = "\n"
    comments: bool = False
    piece_bytes: int = 0
    piece_gap_s: float = 0.001
    generated: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    usage: Literal["event", "last", "every", "none"] = "event"
    done: bool = True
    finish_reason: str | None = "length"
    bad_json_at: int | None = None
    error_at: int | None = None
    stall_at: int | None = None
    reset_at: int | None = None
    close_at: int | None = None
    status: int = 200
    message: str = "the script says so"
    raw: str | None = None
    framing: Literal["chunked", "eof"] = "chunked"
    after: Literal["keep", "announced", "silent"] = "keep"
    hang_up: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One send.

    :param due_s: After the arrival of the request.
    :param events: Events with `choices` that are complete with it.
    :param then: What becomes of the connection: more follows, the next request may come, it hangs, is closed or reset.
    """

    due_s: float
    data: bytes
    events: int = 0
    then: Literal["more", "next", "hang", "close", "reset"] = "more"


class Composer:
    """Makes the steps of an answer; what does not depend on the request is made once."""

    def __init__(self, answer: Answer, model: str) -> None:
        self._answer = answer
        self._model = model
        self._plain = self._event(self._content())
        self._plain_sends = {1: self._framed(self._plain)}
        connection = "Connection: close\r\n" if answer.after == "announced" or answer.framing == "eof" else ""
        framing = "Transfer-Encoding: chunked\r\n" if answer.framing == "chunked" else ""
        self._head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{connection}{framing}\r\n".encode()
        self._end: Literal["next", "close"] = (
            "next" if answer.after == "keep" and answer.framing == "chunked" else "close"
        )

    def steps(self, prompt_tokens: int, max_tokens: int) -> Iterator[Step]:
        """What to send for a request, in order of time."""
        if not self._answer.piece_bytes:
            return self._steps(prompt_tokens, max_tokens)
        return self._cut(self._steps(prompt_tokens, max_tokens))

    def _steps(self, prompt_tokens: int, max_tokens: int) -> Iterator[Step]:
        answer = self._answer
        if answer.hang_up:
            yield Step(0.0, b"", then="close")
            return
        if answer.raw is not None:
            yield Step(answer.ttft_s, answer.raw.encode("latin-1"), then="close")
            return
        if answer.status != 200:
            yield Step(answer.ttft_s, error_response(answer.status, answer.message), then="next")
            return
        tokens = max_tokens if answer.generated is None else answer.generated
        count = -(-tokens // answer.tokens_per_event)
        faults = {
            place: fault
            for fault in ("error", "stall", "reset", "close")
            if (place := getattr(answer, f"{fault}_at")) is not None
        }
        plain_until = count - 1 if answer.bad_json_at is None and answer.usage != "every" else 0
        head, place, sends = self._head, 0, 0
        while place < count:
            due_s = answer.ttft_s + sends * answer.interval_s
            batch = min(answer.events_per_send, count - place)
            if faults and (found := [at for at in range(place, place + batch) if at in faults]):
                batch = found[0] - place
                if batch or (head and faults[found[0]] != "reset"):
                    yield Step(
                        due_s, head + self._sends(place, batch, count, prompt_tokens, tokens, plain_until), batch
                    )
                yield self._fault(faults[found[0]], due_s)
                return
            yield Step(due_s, head + self._sends(place, batch, count, prompt_tokens, tokens, plain_until), batch)
            head, place, sends = b"", place + batch, sends + 1
        closing = (
            self._event(self._content(usage=self._usage(prompt_tokens, tokens))) if answer.usage == "event" else b""
        )
        closing += self._done()
        due_s = answer.ttft_s + max(0, sends - 1) * answer.interval_s
        yield Step(due_s, head + (self._framed(closing) if closing else b"") + self._last_chunk(), then=self._end)

    def _sends(self, place: int, batch: int, count: int, prompt_tokens: int, tokens: int, plain_until: int) -> bytes:
        if batch == 0:
            return b""
        if place + batch <= plain_until:
            if batch not in self._plain_sends:
                self._plain_sends[batch] = self._framed(self._plain * batch)
            return self._plain_sends[batch]
        answer, events = self._answer, b""
        for at in range(place, place + batch):
            last = at == count - 1
            sofar = min(tokens, (at + 1) * answer.tokens_per_event)
            told = answer.usage == "every" or (answer.usage == "last" and last)
            if at == answer.bad_json_at:
                events += self._event('{"choices":[{"text":')
            else:
                events += self._event(
                    self._content(
                        choice=True,
                        finish_reason=answer.finish_reason if last else None,
                        usage=self._usage(prompt_tokens, sofar) if told else None,
                    )
                )
        return self._framed(events)

    def _fault(self, fault: str, due_s: float) -> Step:
        if fault == "error":
            content = {"error": {"object": "error", "message": self._answer.message, "type": "x", "code": 500}}
            return Step(
                due_s,
                self._framed(self._event(json.dumps(content)) + self._done()) + self._last_chunk(),
                then=self._end,
            )
        then: dict[str, Literal["hang", "reset", "close"]] = {"stall": "hang", "reset": "reset", "close": "close"}
        return Step(due_s, b"", then=then[fault])

    def _content(
        self, *, choice: bool | None = None, finish_reason: str | None = None, usage: dict[str, Any] | None = None
    ) -> str:
        choices: list[dict[str, Any]] = []
        if choice or usage is None:
            choices = [
                {"index": 0, "text": self._answer.text, "logprobs": None}
                | {"finish_reason": finish_reason, "matched_stop": None}
            ]
        head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1764061200, "model": self._model}
        # Unescaped, so that text of several bytes a character can be cut within one.
        return json.dumps(head | {"choices": choices, "usage": usage}, ensure_ascii=False)

    def _usage(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        answer = self._answer
        told = prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens
        usage: dict[str, Any] = {"prompt_tokens": told, "total_tokens": told + tokens, "completion_tokens": tokens}
        if answer.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": answer.cached_tokens}
        return usage

    def _event(self, data: str) -> bytes:
        comment = f": comment{self._answer.newline * 2}" if self._answer.comments else ""
        return f"{comment}data: {data}{self._answer.newline * 2}".encode()

    def _done(self) -> bytes:
        return self._event("[DONE]") if self._answer.done else b""

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._answer.framing == "chunked" else data

    def _last_chunk(self) -> bytes:
        return b"0\r\n\r\n" if self._answer.framing == "chunked" else b""

    def _cut(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same bytes in small pieces; events are complete with the last piece of a step."""
        size, late_s = self._answer.piece_bytes, 0.0
        for step in steps:
            for place in range(0, len(step.data) - size, size):
                yield Step(step.due_s + late_s, step.data[place : place + size])
                late_s += self._answer.piece_gap_s
            rest = step.data[(len(step.data) - 1) // size * size :] if step.data else b""
            yield Step(step.due_s + late_s, rest, step.events, step.then)
            late_s += self._answer.piece_gap_s


def error_response(status: int, message: str) -> bytes:
    """A response that says what is wrong, in SGLang's form."""
    return response(
        status, {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": status}
    )


def response(status: int, content: object) -> bytes:
    """A JSON response."""
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


EchoFault = Literal["none", "count", "null", "nan", "positive"]


def completion(content: dict[str, Any], logprob: float, fault: EchoFault) -> bytes:
    """The response to a request that does not stream; with `echo`, each prompt's logprobs as SGLang gives them.

    :param content: The request; `prompt` is text, ids, or a list of either.
    :param logprob: Of every token.
    :param fault: One logprob too few, or one that is null, NaN or positive.
    """
    prompt, max_tokens = content["prompt"], int(content.get("max_tokens", 16))
    if max_tokens < 1:
        return error_response(400, f"max_tokens must be at least 1, got {max_tokens}.")
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    choices, prompt_tokens = [], 0
    for index, one in enumerate(prompts):
        ids = list(one.encode()) if isinstance(one, str) else list(one)
        prompt_tokens += len(ids)
        logprobs = None
        if content.get("echo") and content.get("logprobs") is not None:
            tokens = [f"t{number}" for number in [*ids, *range(max_tokens)]]
            values: list[float | None] = [None, *[logprob] * (len(tokens) - 1)]
            middle = len(ids) // 2
            if fault == "count":
                del values[middle], tokens[middle]
            elif fault != "none":
                values[middle] = {"null": None, "nan": float("nan"), "positive": 0.5}[fault]
            top = [None if value is None else {token: value} for token, value in zip(tokens, values, strict=True)]
            logprobs = {
                "text_offset": [-1] * len(tokens),
                "token_logprobs": values,
                "tokens": tokens,
                "top_logprobs": top,
            }
        choices.append(
            {"index": index, "text": "", "logprobs": logprobs, "finish_reason": "length", "matched_stop": None}
        )
    generated = max_tokens * len(prompts)
    usage = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + generated,
        "completion_tokens": generated,
    }
    head = {"id": "cmpl-0", "object": "text_completion", "created": 1764061200, "model": content.get("model")}
    return response(200, head | {"choices": choices, "usage": usage})
