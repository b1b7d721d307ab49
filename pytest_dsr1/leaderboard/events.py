"""What Gradio says about a submission: the event stream's bytes become events, and an event an outcome.

Forms seen on Gradio 6.31, 5.49 and 4.44: `complete` with the handler's outputs, `heartbeat` with null, `error` with
null, with a text, or with an object whose `error` is a text or null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """What has become of a submission."""

    PENDING = "pending"
    """Not sent, or certainly not arrived: it can be sent."""
    SENDING = "sending"
    """About to be sent. If nothing follows, nobody knows whether it arrived."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The leaderboard's handler said no, or failed."""
    UNKNOWN = "unknown"
    """Sent, and no answer: it may be there. Never sent again unasked."""


@dataclass(frozen=True)
class Outcome:
    """How sending ended.

    :param message: What was answered, or why there was no answer; one line, without secrets.
    """

    state: State
    message: str = ""
    event_id: str = ""


@dataclass(frozen=True)
class Event:
    """One event of a stream."""

    name: str
    data: str


@dataclass
class EventParser:
    """Bytes to events, however they are cut; lines end with LF or CRLF. An event that nothing ends is none."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            if line:
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if key == "event":
                    self._name = value
                elif key == "data":
                    self._data.append(value)
            elif self._name or self._data:
                yield Event(self._name, "\n".join(self._data))
                self._name, self._data = "", []


def outcome(event: Event, event_id: str = "") -> Outcome | None:
    """What an event says about the submission; None if it says nothing yet."""
    if event.name == "complete":
        return Outcome(State.ACCEPTED, _first_text(event.data), event_id)
    if event.name != "error":
        return None
    message, found = _error_text(event.data)
    if found is not None and found.startswith("404"):
        # The handler may have run all the same: Gradio forgets an outcome that was lost on its way.
        return Outcome(State.UNKNOWN, f"the leaderboard does not know the submission any more ({message})", event_id)
    return Outcome(State.REFUSED, message, event_id)


def _first_text(data: str) -> str:
    """The handler's first output, if it is a text."""
    try:
        outputs = json.loads(data)
    except ValueError:
        return ""
    first = outputs[0] if isinstance(outputs, list) and outputs else outputs
    return first if isinstance(first, str) else ""


def _error_text(data: str) -> tuple[str, str | None]:
    """A message to show, and the text of an error that is a bare one."""
    try:
        said = json.loads(data)
    except ValueError:
        said = data or None
    if isinstance(said, str):
        return said, said
    text = said.get("error") if isinstance(said, dict) else None
    if isinstance(text, str) and text.strip():
        return text, None
    return "its handler failed and did not say why", None
