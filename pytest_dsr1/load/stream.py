"""The bytes of one streamed response, and when they were read → events with their times, usage, errors.

Pure, and run after the measured window: nothing here is on the clock. An event's time is that of the read which
completed it, its terminating blank line included.
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

# A line of an event stream ends with CRLF, LF or CR; atomic, so that CRLF is never taken for two ends.
_LINE_END = re.compile(rb"(?>\r\n|\n|\r)")
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_BOM = b"\xef\xbb\xbf"
_DONE = b"[DONE]"
#: How much of a body an error quotes.
_EXCERPT_BYTES = 160


@dataclass(slots=True)
class Events:
    """The complete events of a stream, as columns: there are millions.

    :param data: Of each event, its data lines joined by LF.
    :param ends: Where in the body each ends, blank line included.
    :param names: Of the few that have an `event` field, by place.
    """

    data: list[bytes] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    names: dict[int, bytes] = field(default_factory=dict)

    def add(self, block: bytes, end: int) -> None:
        """Add the event that these lines are, if they are one."""
        data, name = _data_of(block)
        if data is None:
            return
        if name:
            self.names[len(self.data)] = name
        self.data.append(data)
        self.ends.append(end)


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a response said.

    :param status: HTTP status; None if there was none.
    :param event_ns: When each event with `choices` was complete. shape (events,)
    :param done: Whether `[DONE]` was seen; nothing behind it is looked at.
    :param usage: The last one that was sent.
    :param finish_reason: The last one that was sent.
    :param error: The message of an error: of an event within the stream, or of the body at another status than 200.
    :param malformed: What is not as HTTP, an event stream or JSON has it; the first such thing.
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
        """Prompt tokens from a cache, where the server tells."""
        details = (self.usage or {}).get("prompt_tokens_details")
        return count_in(details, "cached_tokens") if isinstance(details, dict) else None


def count_in(usage: Json | None, key: str) -> int | None:
    """A token count of a usage object; None where it is absent or not a count."""
    value = (usage or {}).get(key)
    return value if type(value) is int and value >= 0 else None


def read_reply(reads: Sequence[bytes], stamps: Sequence[int]) -> Reply:
    """Replay the reads of one response, framing and all.

    :param stamps: When each read was made, in ns. shape (reads,)
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
        # An event without its blank line is no event; but a stream whose last byte is missing has no other meaning.
        reply.done = True
    if body and not events.data and not reply.done and reply.malformed is None:
        reply.malformed = f"not an event stream ({response.content_type or 'no content type'}): {_excerpt(body)}"
    # The first read by which so much of the body had come.
    ends = [events.ends[place] for place in places]
    reply.event_ns = np.asarray(stamps, np.int64)[np.searchsorted(body_sizes, ends)] if ends else reply.event_ns
    return reply


def split_events(body: bytes) -> tuple[Events, bytes]:
    """The complete events of a body, and what is left behind the last of them.

    Comments, and events without data, are left out.
    """
    events = Events()
    start = len(_BOM) if body.startswith(_BOM) else 0
    if b"\r" in body:
        for blank in _BLANK_LINE.finditer(body, start):
            events.add(body[start : blank.start()], blank.end())
            start = blank.end()
        return events, body[start:]
    *blocks, rest = body[start:].split(b"\n\n")
    ends = list(accumulate((len(block) + 2 for block in blocks), initial=start))[1:]
    if body.count(b"\n") == 2 * len(blocks) and all(block.startswith(b"data: ") for block in blocks):
        # Nearly all streams look like this: nothing but one line of data to an event.
        return Events([block[6:] for block in blocks], ends), rest
    for block, end in zip(blocks, ends, strict=True):
        events.add(block, end)
    return events, rest


def _data_of(block: bytes) -> tuple[bytes | None, bytes]:
    """Data and name of an event from its lines; None for one without data."""
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
    """Fill in what the events say; the places of those with `choices`."""
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
                reply.malformed = reply.malformed or f"event with strange choices: {_excerpt(said[place])}"
                break
            places.append(place)
            if reason is not None:
                reply.finish_reason = str(reason)
        usage = content.get("usage")
        if usage is not None:
            if not isinstance(usage, dict):
                reply.malformed = reply.malformed or f"event with strange usage: {_excerpt(said[place])}"
                break
            reply.usage = usage
        if content.get("error") or content.get("object") == "error" or events.names.get(place) == b"error":
            reply.error = _message(content) or _excerpt(said[place])
            break
    return places


def _parse(said: Sequence[bytes], reply: Reply) -> list[Json]:
    """The events as objects, up to the first that is none."""
    try:
        # One call for the whole stream, rather than one for each of its events, halves the time.
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
            reply.malformed = reply.malformed or f"event that is not an object: {_excerpt(data)}"
            break
        contents.append(content)
    return contents


def _message(content: Json) -> str | None:
    """The message of an error object, in any of the forms that servers use."""
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
    """Collects one response from the parser: the first that is not an interim one."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.content_type = ""
        self.body: list[bytes] = []
        self.malformed: str | None = None
        # Called by the parser, for every chunk.
        self.on_body = self.body.append
        self._complete = False
        self._pieces = 0
        self._parser = httptools.HttpResponseParser(self)

    def replay(self, reads: Sequence[bytes]) -> list[int]:
        """Feed the reads; how many bytes of the body had come after each."""
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
                # What follows is not of this response.
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
