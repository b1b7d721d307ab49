"""Parses a recorded response into events with their times, usage and errors.

Pure functions that run after the measured window, so their speed does not affect a measurement. The time of an event
is the time of the read that completed it, its terminating blank line included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeAlias

import httptools
import numpy as np
import orjson

from pytest_dsr1.core.samples import Nanoseconds

Json: TypeAlias = dict[str, Any]

# A line of an event stream ends with CRLF, LF or CR. The groups are atomic, so that CRLF never counts as two line ends.
_LINE_END = re.compile(rb"(?>\r\n|\n|\r)")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BOM = b"\xef\xbb\xbf"
_DONE = b"[DONE]"
#: Bytes of a body that an error message quotes.
_EXCERPT_BYTES = 160


@dataclass(slots=True)
class Events:
    """The complete events of a stream, as columns, since there are millions.

    :param data: The data lines of each event, joined by LF.
    :param ends: Offset in the body where each event ends, blank line included.
    :param names: The `event` field of the few events that have one, by index.
    """

    data: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    names: dict[int, bytes] = field(default_factory=dict)

    def add(self, block: bytes, end: int) -> None:
        """Add the event in these lines; lines without data are not an event."""
        data, name = _data_of(block)
        if data is None:
            return
        if name:
            self.names[len(self.data)] = name
        self.data.append(data)
        self.ends.append(end)


@dataclass(slots=True, kw_only=True)
class Reply:
    """The content of a response.

    :param status: HTTP status; None if there was none.
    :param event_ns: Time when each event with `choices` was complete. shape (events,)
    :param done: Whether `[DONE]` was received; everything after it is ignored.
    :param usage: The last usage object received.
    :param finish_reason: The last finish reason received.
    :param error: Message of an error event in the stream, or of the body if the status is not 200.
    :param malformed: The first violation of HTTP, the event stream format or JSON.
    """

    status: int | None = None
    event_ns: Nanoseconds = field(default_factory=lambda: np.empty(0, np.int64))
    done: bool = False
    usage: Json | None = None
    finish_reason: str | None = None
    error: str | None = None
    malformed: str | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens taken from a prefix cache, if the server reports them."""
        details = (self.usage or {}).get("prompt_tokens_details")
        return count_in(details, "cached_tokens") if isinstance(details, dict) else None


def count_in(usage: Json | None, key: str) -> int | None:
    """A token count of a usage object; None if it is absent or not a count."""
    value = (usage or {}).get(key)
    return value if type(value) is int and value >= 0 else None


def read_reply(reads: Sequence[bytes], stamps: Sequence[int]) -> Reply:
    """Parse one response from its recorded reads, HTTP framing included.

    :param stamps: Time of each read, in ns. shape (reads,)
    """
    response = _Response()
    body_sizes = response.replay(reads)
    reply = Reply(status=response.status, malformed=response.malformed)
    body = b"".join(response.body)
    if response.status != 200:
        if response.status is not None:
            reply.error = _message_of_body(body)
        return reply
    events, rest = split_events(body)
    places = _interpret(events, reply)
    if _data_of(rest)[0] == _DONE:
        # Without its blank line it is not a complete event, but a last line of [DONE] can mean nothing else.
        reply.done = True
    if body and not events.data and not reply.done and reply.malformed is None:
        reply.malformed = f"not an event stream ({response.content_type or 'no content type'}): {_excerpt(body)}"
    # The first read after which the body was at least that long.
    ends = [events.ends[place] for place in places]
    reply.event_ns = np.asarray(stamps, np.int64)[np.searchsorted(body_sizes, ends)] if ends else reply.event_ns
    return reply


def split_events(body: bytes) -> tuple[Events, bytes]:
    """The complete events of a body, and the bytes after the last of them.

    Comments and events without data are left out.
    """
    start = len(_BOM) if body.startswith(_BOM) else 0
    *blocks, rest = body[start:].split(b"\n\n")
    if body.count(b"\n") == 2 * len(blocks) and b"\r" not in body and all(one.startswith(b"data: ") for one in blocks):
        # Nearly all streams look like this: each event is a single data line.
        ends = accumulate((len(block) + 2 for block in blocks), initial=start)
        return Events([block[6:] for block in blocks], list(ends)[1:]), rest
    events = Events()
    for blank in _BLANK_LINE.finditer(body, start):
        events.add(body[start : blank.start()], blank.end())
        start = blank.end()
    return events, body[start:]


def _data_of(block: bytes) -> tuple[bytes | None, bytes]:
    """Data and name of an event; the data are None if it has no data line."""
    data, name = [], b""
    for line in _LINE_END.split(block):
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
    return (b"\n".join(data) if data else None), name


def _interpret(events: Events, reply: Reply) -> list[int]:
    """Fill `reply` from the events; return the indices of those with `choices`."""
    places: list[int] = []
    said = events.data
    if _DONE in said:
        reply.done = True
        said = said[: said.index(_DONE)]
    for place, content in enumerate(_parse(said, reply)):
        choices = content.get("choices")
        if choices:
            try:
                reason = choices[0].get("finish_reason")
            except (AttributeError, KeyError, TypeError):
                reply.malformed = reply.malformed or f"event with malformed choices: {_excerpt(said[place])}"
                break
            places.append(place)
            if reason is not None:
                reply.finish_reason = str(reason)
        usage = content.get("usage")
        if usage is not None:
            if not isinstance(usage, dict):
                reply.malformed = reply.malformed or f"event with malformed usage: {_excerpt(said[place])}"
                break
            reply.usage = usage
        if content.get("error") or content.get("object") == "error" or events.names.get(place) == b"error":
            reply.error = _message(content) or _excerpt(said[place])
            break
    return places


def _parse(said: Sequence[bytes], reply: Reply) -> list[Json]:
    """The events as JSON objects, up to the first that is not one."""
    try:
        # One call for the whole stream takes half the time of one call per event.
        contents = orjson.loads(b"[%b]" % b",".join(said))
        if len(contents) == len(said) and all(type(content) is dict for content in contents):
            return list(contents)
    except orjson.JSONDecodeError:
        pass
    contents = []
    for data in said:
        try:
            content = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            reply.malformed = reply.malformed or f"event that is not JSON ({error}): {_excerpt(data)}"
            break
        if type(content) is not dict:
            reply.malformed = reply.malformed or f"event that is not a JSON object: {_excerpt(data)}"
            break
        contents.append(content)
    return contents


def _message(content: Json) -> str | None:
    """The message of an error object, in the different forms that servers use."""
    for key in ("error", "message", "detail"):
        value = content.get(key)
        if isinstance(value, dict):
            value = _message(value)
        if value:
            return " ".join(str(value).split())
    return None


def _message_of_body(body: bytes) -> str:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _excerpt(body)
    return (_message(content) if isinstance(content, dict) else None) or _excerpt(body)


def _excerpt(data: bytes) -> str:
    text = " ".join(data[:_EXCERPT_BYTES].decode(errors="replace").split())
    return text + "…" if len(data) > _EXCERPT_BYTES else text


class _Response:
    """Collects the first response that is not an interim one (status 1xx)."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.body: list[bytes] = []
        self.malformed: str | None = None
        # The parser calls this for every chunk.
        self.on_body = self.body.append
        self._complete = False
        self._pieces = 0
        self._parser = httptools.HttpResponseParser(self)

    def replay(self, reads: Sequence[bytes]) -> list[int]:
        """Feed the reads to the parser; return the length of the body after each read."""
        body, feed = self.body, self._parser.feed_data
        sizes, size = [], 0
        for read in reads:
            before = len(body)
            try:
                feed(read)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                if not self._complete:
                    self.malformed = f"not HTTP ({' '.join(str(error).split())}): {_excerpt(read)}"
            if self._complete:
                # What follows does not belong to this response.
                del body[self._pieces :]
            size += sum(map(len, body[before:]))
            sizes.append(size)
            if self._complete or self.malformed is not None:
                break
        return sizes + [size] * (len(reads) - len(sizes))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if not self._complete and status >= 200:
            self.status = status

    def on_message_complete(self) -> None:
        if self.status is not None and not self._complete:
            self._complete = True
            self._pieces = len(self.body)
