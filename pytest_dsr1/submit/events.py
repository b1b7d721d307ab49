"""What Gradio answers, and what that says about a submission.

Events seen on Gradio 6.31, 5.49 and 4.44: `complete` with the handler's outputs; `heartbeat` with null; `error` with
null, with a string, or with an object whose `error` is a string or null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec


class SubmissionState(StrEnum):
    """How far a submission has got."""

    PENDING = "pending"
    """Not sent, or certainly not received: it can be sent."""
    SENDING = "sending"
    """Written just before the POST. If no other state follows, the process died and the outcome is not known."""
    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The leaderboard's handler refused the values, or failed."""
    UNKNOWN = "unknown"
    """Sent, but without an answer: the leaderboard may have it. Sent again only if the user says so."""
    INELIGIBLE = "ineligible"
    """Its result may not be sent. Never in an outbox."""


class Delivery(msgspec.Struct, frozen=True):
    """What became of one submission.

    :param message: The leaderboard's answer, or why there is none; one line, without secrets.
    :param event_id: Gradio's id of the submission; empty if none was received.
    """

    state: SubmissionState
    message: str = ""
    event_id: str = ""

    @property
    def words(self) -> str:
        """What the summary and the terminal say, in one line."""
        match self.state:
            case SubmissionState.ACCEPTED:
                event = f", event {self.event_id}" if self.event_id else ""
                return f"submitted{event}{': ' + self.message if self.message else ''}"
            case SubmissionState.REFUSED:
                return f"refused by the leaderboard: {self.message}"
            case SubmissionState.UNKNOWN:
                event = f" (event {self.event_id})" if self.event_id else ""
                return f"unknown: {self.message}{event}; look at the leaderboard before you send it again"
            case SubmissionState.INELIGIBLE:
                return f"refused: {self.message}"
        return f"pending: {self.message}"


def parse_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """The events of a stream: name, and data lines joined by line feeds.

    Lines end with LF or CRLF. An event ends with an empty line; one that is cut off before it is dropped.

    :param chunks: The stream in pieces of any size.
    """
    rest = b""
    for chunk in chunks:
        *blocks, rest = re.split(rb"\r?\n\r?\n", rest + chunk)
        for block in blocks:
            lines = re.split(r"\r?\n", block.decode("utf-8", "replace"))
            fields = [(key, value.removeprefix(" ")) for key, _, value in (line.partition(":") for line in lines)]
            name = next((value for key, value in reversed(fields) if key == "event"), "")
            data = [value for key, value in fields if key == "data"]
            if name or data:
                yield name, "\n".join(data)


def delivery_of(name: str, data: str) -> Delivery | None:
    """The outcome that an event reports; None if it reports none, like a heartbeat."""
    said = parsed(data)
    if name == "complete":
        # The handler's first output is its answer.
        answer = said[0] if isinstance(said, list) and said else ""
        return Delivery(SubmissionState.ACCEPTED, answer if isinstance(answer, str) else "")
    if name != "error":
        return None
    if isinstance(said, str) and said.startswith("404"):
        # The handler may have run: Gradio also forgets an outcome whose transfer failed.
        message = f"the leaderboard does not know the submission any more ({said})"
        return Delivery(SubmissionState.UNKNOWN, message)
    reason = said.get("error") if isinstance(said, dict) else said
    if isinstance(reason, str) and reason.strip():
        return Delivery(SubmissionState.REFUSED, reason)
    return Delivery(SubmissionState.REFUSED, "its handler failed and gave no reason")


def error_detail(body: bytes) -> str:
    """What an HTTP error's body says: `detail` of Gradio's JSON, else the body."""
    if is_html(body):
        return "a page of HTML"
    said = parsed(body)
    detail = said.get("detail", said) if isinstance(said, dict) else said
    return (detail or "nothing") if isinstance(detail, str) else json.dumps(detail)


def is_html(body: bytes) -> bool:
    """Whether an answer is a page for people, not one of the app."""
    return body.lstrip()[:1] == b"<"


def parsed(text: str | bytes) -> Any:
    """The JSON in `text`; if it is no JSON, the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text if isinstance(text, str) else text.decode("utf-8", "replace")
