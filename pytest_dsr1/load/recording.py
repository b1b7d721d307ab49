"""Raw responses, kept unparsed until the measured window is over.

A long sweep reads gigabytes. Beyond a bound, finished recordings are moved to an unnamed temporary file, in small steps
at every tick. These writes go to the kernel's page cache at memory speed, and the kernel can evict the pages when
memory is short.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from pytest_dsr1.core.samples import Outcome

#: Bytes of finished recordings that are kept in memory.
MEMORY_BOUND = 256 << 20
#: Reads per write, which then takes about 0.2 ms.
_READS_PER_WRITE = 512
#: Each tick makes one more write for every so many bytes beyond the bound.
_BYTES_PER_EXTRA_WRITE = 4 << 20
#: Recordings that one tick accounts for; CONC requests may have ended since the last tick.
_INTAKE = 8


@dataclass(slots=True)
class Recording:
    """The reads of one response.

    :param reads: Bytes of each read from the socket, HTTP framing included; empty after they were moved to a file.
    :param stamps: Time of each read, in ns of the performance counter.
    :param ending: How the reading ended: OK by the response's HTTP framing, or by the end of the connection if it has
        no framing. None while the response is being read.
    :param note: Message of the operating system or the parser about the ending.
    """

    reads: list[bytes] = field(default_factory=list)
    stamps: array[int] = field(default_factory=lambda: array("q"))
    ending: Outcome | None = None
    note: str = ""
    moved: tuple[int, array[int]] | None = None
    """Offset in the file and the size of each read, if the reads were moved there."""


class RecordingStore:
    """Finished recordings, in memory up to a bound, then in a temporary file.

    The file has no name and lies in TMPDIR. If it cannot be written, everything stays in memory.
    """

    def __init__(self, memory_bound: int = MEMORY_BOUND) -> None:
        self._bound = memory_bound
        self._new: deque[Recording] = deque()
        self._held: deque[tuple[Recording, int]] = deque()
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._end = 0
        # The oldest recording may be written in several steps: its offset, and the number of reads written so far.
        self._start, self._written = 0, 0
        self._writable = True

    def add(self, recording: Recording) -> None:
        """Take a finished recording: an append on the hot path; `tidy` does the rest."""
        self._new.append(recording)

    def tidy(self) -> None:
        """Move recordings beyond the bound to the file.

        One write per call, and more only if far more bytes than the bound are held.
        """
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
                # For example no space on the device. Memory may still suffice, so the run goes on without the file.
                self._writable = False

    def reads(self, recording: Recording) -> Sequence[bytes]:
        """The reads of a recording, from memory or from the file."""
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
        """Close the file, which deletes it."""
        if self._file is not None:
            self._file.close()

    def _move_on(self) -> None:
        """Write a part of the oldest recording; drop it from memory after the last part."""
        recording, size = self._held[0]
        # Empty if the recording was parsed before it was moved.
        batch = recording.reads[self._written : self._written + _READS_PER_WRITE]
        if self._file is None:
            # Unbuffered: the reads use the descriptor, not the file object.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close()
        data = memoryview(b"".join(batch))
        self._end += len(data)
        while data:
            data = data[self._file.write(data) :]
        self._written += len(batch)
        if self._written < len(recording.reads):
            return
        recording.moved = self._start, array("q", map(len, recording.reads))
        recording.reads = []
        self._start, self._written = self._end, 0
        self._held.popleft()
        self._held_bytes -= size
