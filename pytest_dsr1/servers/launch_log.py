"""What a server's log says: how far its start is, and what it died of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice

from pytest_dsr1.servers.causes import GROUPS, Cause

__all__ = ["Cause", "cause_of_death", "progress_of", "telling_lines"]

#: Lines from the end that are looked at for a cause; a dying rank of eight writes hundreds.
_LOOKED_AT = 5_000
#: Of a line. So much of it is searched for a cause, and so much is shown.
_SEARCHED = 2_000
_SHOWN = 300
#: Around a telling line: what led there, where no traceback says so, and what the server did about it.
_BEFORE = 3
_AFTER = 2

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|\x1b."  # the short ones
)
#: Also what turns or breaks a line, and halves of surrogate pairs, which nothing can print.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: SGLang's "[2026-11-24 12:57:30 TP0] " and the names of its processes before a line.
_STAMP = re.compile(r"^(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[^\]]*\]|\[(?:rank\d+|aiter)\]:?|\(\w+ pid=\d+\))\s*")

#: Lines that look like a cause or fill a screen, and are neither.
_NOISE = re.compile(
    r"server_args=|ServerArgs\("  # which may hold keys, too
    r"|Ignore import error|\S+:\d+: \w*Warning: |\s+warnings\.warn\("
    r"|usage: |\s+\[-"
    r"|\s*[\^~]+\s*$"  # under a traceback's lines
    r"|INFO: +\S+ - \"|(?:Prefill|Decode) batch\b|Echo is not compatible with logprobs"
    r"|kill_process_tree called"
    # not a line to show anybody: the server that answered may be another one
    r"|The server is fired up"
)
_TRACEBACK = "Traceback (most recent call last):"
_RAISED = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: |$)")
_ERROR = re.compile(r"(?i:error|exception|failed|fatal|critical|crashed|died|abort|killed|SIG[A-Z]+ received)")

#: As long as seen on MI355X.
_COMPILING = "compiling kernels (a first start takes 20 to 30 minutes)"
_WEIGHTS = "loading weights"
_GRAPHS = "capturing CUDA graphs"


def progress_of(line: str) -> str | None:
    """Say in a few words how far a start is; None if `line` does not tell.

    Never that it is ready: SGLang says so as well when another server holds its port.
    """
    text = _message(line)
    for words, said in _STAGES:
        if match := words.match(text):
            return said if isinstance(said, str) else said(match)
    return None


def _of(stage: str) -> Callable[[re.Match[str]], str]:
    """A progress bar's files: how many of how many."""
    return lambda bar: f"{stage} {bar['done']}/{bar['all']}"


def _percent(bar: re.Match[str]) -> str:
    return f"{_GRAPHS} {100 * int(bar['done']) // max(int(bar['all']), 1)} %"


# tqdm: "Loading …:  12% Completed | 20/163 [00:31<03:40,  1.54s/it]"; counts of more digits than this are none.
_BAR = r".*?\| *(?P<done>\d{1,9})/(?P<all>\d{1,9}) \["

#: In the order of a start. What each begins with, in SGLang 0.5.23, in some versions before it, and in aiter.
_STAGES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(words), said)
    for words, said in (
        (r"server_args=", "starting its processes"),
        (rf"(?:Fetching|Downloading) {_BAR}", _of("downloading the model, file")),
        (r"\S+\.safetensors: +\d+%\|", "downloading the model"),
        (r"Init (?:torch distributed|parallel) begin", "connecting its processes"),
        (rf"(?:Loading|Multi-thread loading)\b.*?(?:shards|safetensors|weights){_BAR}", _of(_WEIGHTS)),
        (r"Load weight begin", _WEIGHTS),
        (r"Load weight end", "allocating the KV cache"),
        (r"(?:KV Cache is allocated|Memory pool end)", "preparing to serve"),
        (rf"Capturing (?:batches|num tokens|prefill shape)\b{_BAR}", _percent),
        (r"Capture .*(?:graph|Graph)\b.* begin", _GRAPHS),
        (r"Capture .*(?:graph|Graph)\b.* end", "preparing to serve"),
        (r".*?(?:start build \[|waiting for baton release|DeepGEMM JIT (?:Pre-)?Compil|DeepGEMM warmup)", _COMPILING),
        (r"Running FlashInfer autotune", "choosing kernels"),
        (r"INFO: +Started server process", "opening its port"),
        (r"INFO: +Uvicorn running on", "answering its first request"),
    )
)


def cause_of_death(lines: Sequence[str]) -> Cause | None:
    """Find what a server died of in the last lines of its log; None if they do not tell."""
    found = _found(_cleaned(lines))
    return None if found is None else found[1]


def telling_lines(lines: Sequence[str], limit: int = 12) -> list[str]:
    """Choose the lines that an error message should show, at most `limit`, each of at most 300 characters.

    Those that end with the cause, after the head of its traceback; without a known cause, those that end with the last
    exception or error; else the end of the log. Escapes and control characters are removed.
    """
    texts = [text for text in _cleaned(lines) if not _is_noise(text)]
    if limit < 1 or not texts:
        return []
    at = _telling(texts)
    if at is None:
        return _shown(texts[-limit:])
    end = min(at + 1 + _AFTER, len(texts)) if limit > 1 + _AFTER else at + 1
    head = _traceback(texts, at)
    start = max(end - limit, at - _BEFORE if head is None else head, 0)
    chosen = texts[start:end]
    # In the place of one of the frames; not of the line itself.
    if head is not None and head < start < at:
        chosen[0] = texts[head]
    return _shown(chosen)


def _telling(texts: Sequence[str]) -> int | None:
    """Which line says most."""
    if (found := _found(texts)) is not None:
        return found[0]
    for words in (_RAISED.match, _ERROR.search):
        for index in range(len(texts) - 1, -1, -1):
            if words(_stampless(texts[index])):
                return index
    return None


def _traceback(texts: Sequence[str], at: int) -> int | None:
    """Where the traceback begins that ends with line `at`; None if there is none."""
    for index in range(at, -1, -1):
        text = texts[index]
        if _TRACEBACK in text:
            return index
        if index < at and not text.startswith((" ", "\t")):
            return None
    return None


def _found(texts: Sequence[str]) -> tuple[int, Cause] | None:
    """The cause, and the line that gave it away."""
    last = [
        (index, text)
        for index, text in islice(zip(range(len(texts) - 1, -1, -1), reversed(texts), strict=True), _LOOKED_AT)
        if not _is_noise(text)
    ]
    for group in GROUPS:
        for index, text in last:
            message = _stampless(text)[:_SEARCHED]
            for rule in group:
                if cause := rule.cause(message):
                    return index, cause
    return None


def _cleaned(lines: Sequence[str]) -> list[str]:
    """The last of them without escapes and control characters; blank ones are left out."""
    return [text for line in lines[-_LOOKED_AT:] if (text := _plain(line))]


def _plain(line: str) -> str:
    """`line` as a terminal would leave it, indented: of a bar that rewrites its line, the last state."""
    text = _ESCAPES.sub("", line).rstrip()
    text = text.rpartition("\r")[2].expandtabs(4)
    return _CONTROLS.sub("", text)


def _message(line: str) -> str:
    return _stampless(_plain(line))


def _stampless(text: str) -> str:
    return _STAMP.sub("", text)


def _is_noise(text: str) -> bool:
    return _NOISE.match(_stampless(text)) is not None


def _shown(texts: Sequence[str]) -> list[str]:
    return [text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…" for text in texts]
