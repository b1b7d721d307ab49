"""What was read for each request, kept as it came until the measured window is over.

A long sweep reads gigabytes. Past a bound, finished recordings move to a file without a name, a little at every tick;
the kernel's page cache takes them at memory speed, and drops them where memory is short.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import IO

#: Bytes of finished recordings that stay in memory.
MEMORY_BOUND = 256 << 20
#: Reads that one gathering write takes, about 0.2 ms' worth of events; Linux would allow 1,024.
_READS_PER_WRITE = 512
#: For so many bytes past the bound, each tick makes one more write.
_BYTES_PER_EXTRA_WRITE = 4 << 20
#: Recordings that one tick takes in; a whole wave may have ended since the last.
_INTAKE = 8


class Ending(Enum):
    """How the reading of a response ended."""

    COMPLETE = auto()
    """As the protocol has it: by its framing, or by end of file where there is none."""
    EOF = auto()
    """The server closed the connection before that."""
    LOST = auto()
    """Reset, or an error of the socket."""
    NOT_HTTP = auto()
    """What came is not an HTTP/1.1 response."""
    IDLE = auto()
    """No byte for too long: given up."""
    DEADLINE = auto()
    """Not complete in time: given up."""


@dataclass(slots=True)
class Recording:
    """The reads of one response.

    :param reads: Bytes as they came from the socket, HTTP framing included; none if they were moved to a file.
    :param stamps: When each of them was read, in ns of the performance counter.
    :param ending: None while it is being read.
    :param note: What the system or the parser said about the ending.
    """

    reads: list[bytes] = field(default_factory=list)
    stamps: array[int] = field(default_factory=lambda: array("q"))
    ending: Ending | None = None
    note: str = ""
    moved: tuple[int, array[int]] | None = None
    """Place in the file, and the size of each read, where they were moved."""


class RecordingStore:
    """Finished recordings: in memory up to a bound, beyond it in an unnamed temporary file (see TMPDIR).

    Where the file cannot be written, everything stays in memory.
    """

    def __init__(self, memory_bound: int = MEMORY_BOUND) -> None:
        self._bound = memory_bound
        self._new: deque[Recording] = deque()
        self._held: deque[tuple[Recording, int]] = deque()
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        # The oldest recording, which may be written in several steps: where it starts, and reads written so far.
        self._start, self._written = 0, 0
        self._writable = True

    def add(self, recording: Recording) -> None:
        """Take a finished recording: one append, for the hot path; the rest is done by `tidy`."""
        self._new.append(recording)

    def tidy(self) -> None:
        """Move recordings past the bound to the file: one write at most, and more only far beyond the bound."""
        for _ in range(min(len(self._new), _INTAKE + len(self._new) // _INTAKE)):
            recording = self._new.popleft()
            size = sum(map(len, recording.reads))
            self._held.append((recording, size))
            self._held_bytes += size
        writes = 1 + (self._held_bytes - self._bound) // _BYTES_PER_EXTRA_WRITE
        while self._writable and self._held_bytes > self._bound and writes > 0:
            writes -= 1
            try:
                self._move_on()
            except OSError:
                # No space, say: memory may still do, and a run that is half measured is not given up for it.
                self._writable = False

    def reads(self, recording: Recording) -> Sequence[bytes]:
        """The reads of a recording, wherever they are."""
        if recording.moved is None or self._file is None:
            return recording.reads
        offset, sizes = recording.moved
        data = os.pread(self._file.fileno(), sum(sizes), offset)
        reads, place = [], 0
        for size in sizes:
            reads.append(data[place : place + size])
            place += size
        return reads

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()

    def _move_on(self) -> None:
        """Write some of the oldest recording; drop it from memory when that was the last of it."""
        recording, size = self._held[0]
        batch = recording.reads[self._written : self._written + _READS_PER_WRITE]
        self._write(batch)
        self._written += len(batch)
        if self._written < len(recording.reads):
            return
        recording.moved = self._start, array("q", map(len, recording.reads))
        recording.reads = []
        self._start, self._written = self._end, 0
        self._held.popleft()
        self._held_bytes -= size

    def _write(self, buffers: Sequence[bytes]) -> None:
        if not buffers:
            # A recording that was used, and emptied, meanwhile.
            return
        if self._file is None:
            # Unbuffered: the writes go around it.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        size = sum(map(len, buffers))
        written = os.writev(self._file.fileno(), buffers)
        if written < size:
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        self._end += size
