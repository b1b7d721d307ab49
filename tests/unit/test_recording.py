"""What is read is kept: in memory up to a bound, in a file beyond it."""

from __future__ import annotations

import tempfile
from array import array
from typing import NoReturn

import pytest

from pytest_dsr1.load.recording import Recording, RecordingStore


def recorded(reads: list[bytes]) -> Recording:
    """A recording of these reads."""
    return Recording(reads=reads, stamps=array("q", range(len(reads))))


def test_little_stays_in_memory() -> None:
    """Up to the bound, no file is made."""
    store = RecordingStore(memory_bound=10)
    recording = recorded([b"12345", b"67890"])
    store.add(recording)
    store.tidy()
    assert recording.moved is None
    assert store.reads(recording) == [b"12345", b"67890"]


def test_more_moves_to_a_file_oldest_first() -> None:
    """Beyond the bound memory is given back, and the reads come back as they were."""
    store = RecordingStore(memory_bound=0)
    all_reads = [[b"%d-%d" % (number, place) for place in range(1100)] for number in range(3)]
    recordings = [recorded(list(reads)) for reads in all_reads]
    for recording in recordings:
        store.add(recording)
    ticks = 0
    while not all(recording.moved for recording in recordings):
        store.tidy()
        ticks += 1
    assert ticks == 9  # three writes for each
    assert not any(recording.reads for recording in recordings)
    assert [store.reads(recording) for recording in recordings] == all_reads
    store.close()


def test_one_write_a_tick() -> None:
    """Tidying takes a little time, often, rather than much at once."""
    store = RecordingStore(memory_bound=0)
    recordings = [recorded([b"x"]) for _ in range(3)]
    for recording in recordings:
        store.add(recording)
    moved = []
    for _ in recordings:
        store.tidy()
        moved.append([recording.moved is not None for recording in recordings])
    assert moved == [[True, False, False], [True, True, False], [True, True, True]]
    store.close()


def test_far_beyond_the_bound_it_catches_up() -> None:
    """A client that reads faster than one write a tick does not fill the memory."""
    store = RecordingStore(memory_bound=0)
    recordings = [recorded([bytes(4 << 20)]) for _ in range(4)]
    for recording in recordings:
        store.add(recording)
    store.tidy()
    assert all(recording.moved for recording in recordings)
    store.close()


def test_a_wave_is_taken_in_over_several_ticks() -> None:
    """When a whole wave ends at once, its sizes are not all added up in one tick."""
    store = RecordingStore(memory_bound=0)
    recordings = [recorded([bytes(4 << 20)]) for _ in range(18)]
    for recording in recordings:
        store.add(recording)
    store.tidy()
    assert sum(recording.moved is not None for recording in recordings) == 10
    store.tidy()
    assert all(recording.moved for recording in recordings)
    store.close()


def test_a_recording_that_was_used_may_be_emptied() -> None:
    """What is moved after it shifts nothing."""
    store = RecordingStore(memory_bound=0)
    used, kept = recorded([b"used"]), recorded([b"kept"])
    store.add(used)
    store.add(kept)
    used.reads.clear()
    store.tidy()
    store.tidy()
    assert store.reads(kept) == [b"kept"]
    store.close()


def test_without_room_for_a_file_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk does not end a run that is half measured."""

    def full(**_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    store = RecordingStore(memory_bound=0)
    recording = recorded([b"x"])
    store.add(recording)
    store.tidy()
    assert store.reads(recording) == [b"x"]
    store.close()
