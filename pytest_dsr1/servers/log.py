"""A server's log: progress of a start, cause of an end, lines to show."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

#: Of each line, so many characters are searched for a cause, and so many are shown; of a value in it, even fewer.
_SEARCHED_LENGTH = 2_000
_SHOWN_LENGTH = 300
_VALUE_LENGTH = 160
#: Lines that are shown before a telling line without a traceback, and after it.
_BEFORE = 3
_AFTER = 2
#: Read from the end of a log: each of eight processes that end may write a hundred lines.
_READ_BYTES = 128 * 1024

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|\x1b."  # the short ones
)
#: Characters that break a line or change its direction, and halves of surrogate pairs, which cannot be printed.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: What SGLang writes before a line: "[2026-11-24 12:57:30 TP0] ", or the name of a process.
_STAMP = re.compile(r"^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\]|\[(?:rank\d+|aiter)\]:?|\(\w+ pid=\d+\))\s*")

#: Lines that are neither searched nor shown: they look like a cause, or fill a screen.
_NOISE = re.compile(
    r"server_args=|ServerArgs\("  # may contain keys
    r"|Ignore import error|\S+:\d+: \w*Warning: |\s+warnings\.warn\("
    r"|usage: |\s+\[-"
    r"|\s*[\^~]+\s*$"  # the markers of a traceback
    r"|INFO: +\S+ - \"|(?:Prefill|Decode) batch\b|Echo is not compatible with logprobs"
    r"|kill_process_tree called"
    # misleading: the server that answered SGLang may be another one
    r"|The server is fired up"
)
_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: |$)")
_ERROR = re.compile(r"(?i:error|exception|failed|fatal|critical|crashed|died|abort|killed|SIG[A-Z]+ received)")


def new_log(folder: Path, name: str) -> Path:
    """A path that does not exist yet: a server may be started twice in a second."""
    stamp, number = time.strftime("%Y%m%d_%H%M%S"), 1
    while True:
        path = folder / (f"{stamp}-{name}.log" if number == 1 else f"{stamp}-{name}_{number}.log")
        if not path.exists():
            return path
        number += 1


def tail_of(path: Path) -> list[str]:
    """The last lines of a log; none if it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - _READ_BYTES, 0))
            return log.read().decode(errors="replace").splitlines()
    except OSError:
        return []


class _Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stage of a start, and the words that begin a line of it."""

    words: str
    text: str


class Cause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a server ended.

    :param words: Words of a log that show it. Their groups stand in braces in the texts of log.toml.
    :param what: What happened, in one line.
    :param advice: What to do, in one line, with our options for it.
    """

    words: str
    what: str
    advice: str


class _Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What log.toml knows."""

    stage: tuple[_Stage, ...]
    root: tuple[Cause, ...]
    killed: tuple[Cause, ...]
    ended: tuple[Cause, ...]


@cache
def known_words() -> _Words:
    """The words that are known of SGLang's logs."""
    return msgspec.toml.decode(Path(__file__).with_name("log.toml").read_bytes(), type=_Words)


def progress_of(lines: Sequence[str]) -> str | None:
    """The stage of a start in a few words; None if no line tells it.

    It never says "ready": SGLang logs that too when another server holds its port.
    """
    for line in reversed(lines):
        text = _stampless(_plain(line))
        for stage in known_words().stage:
            if match := re.match(stage.words, text):
                return stage.text.format_map(match.groupdict())
    return None


def cause_of_end(lines: Sequence[str]) -> Cause | None:
    """Find why a server ended in the last lines of its log; None if they do not tell."""
    found = _found(_cleaned(lines))
    return None if found is None else found[1]


def telling_lines(lines: Sequence[str], limit: int = 12) -> list[str]:
    """Choose at most `limit` lines for a message, each of at most 300 characters.

    They lead to the line of the known cause, or else to the last exception or error, or else to the end of the log.
    Where that line ends a traceback, the traceback's head is among them. Escapes and control characters are removed.
    """
    texts = _cleaned(lines)
    if limit < 1 or not texts:
        return []
    at = _telling(texts)
    if at is None:
        return [_cut(text, _SHOWN_LENGTH) for text in texts[-limit:]]
    end = min(at + 1 + _AFTER, len(texts)) if limit > 1 + _AFTER else at + 1
    head = _traceback(texts, at)
    start = max(end - limit, at - _BEFORE if head is None else head, 0)
    chosen = texts[start:end]
    # The head replaces one of the frames.
    if head is not None and head < start < at:
        chosen[0] = texts[head]
    return [_cut(text, _SHOWN_LENGTH) for text in chosen]


def _telling(texts: Sequence[str]) -> int | None:
    """The index of the line that says most."""
    if (found := _found(texts)) is not None:
        return found[0]
    for words in (_RAISED.match, _ERROR.search):
        for index in range(len(texts) - 1, -1, -1):
            if words(_stampless(texts[index])):
                return index
    return None


def _traceback(texts: Sequence[str], at: int) -> int | None:
    """The first line of the traceback that ends with line `at`; None if there is none."""
    for index in range(at, -1, -1):
        text = texts[index]
        if _TRACEBACK in text:
            return index
        if index < at and not text.startswith((" ", "\t")):
            return None
    return None


def _found(texts: Sequence[str]) -> tuple[int, Cause] | None:
    """The known cause, and the index of the line that shows it."""
    last = [(index, _stampless(texts[index])[:_SEARCHED_LENGTH]) for index in range(len(texts) - 1, -1, -1)]
    words = known_words()
    for group in (words.root, words.killed, words.ended):
        for index, message in last:
            for known in group:
                if match := re.search(known.words, message):
                    values = {name: _cut(value, _VALUE_LENGTH) for name, value in match.groupdict("").items()}
                    return index, Cause(known.words, known.what.format_map(values), known.advice.format_map(values))
    return None


def _cleaned(lines: Sequence[str]) -> list[str]:
    """The lines without control characters, blank lines and noise."""
    return [text for text in map(_plain, lines) if text and not _NOISE.match(_stampless(text))]


def _plain(line: str) -> str:
    """`line` as a terminal shows it; of a progress bar, the last state."""
    text = _ESCAPES.sub("", line).rstrip()
    text = text.rpartition("\r")[2].expandtabs(4)
    return _CONTROLS.sub("", text)


def _stampless(text: str) -> str:
    return _STAMP.sub("", text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
