"""The batch folder on disk: names of files, atomic writing, reading results."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.result import Result

SUMMARY_NAME = "summary.txt"


def result_path(folder: Path, point: Point) -> Path:
    """The result file of a point."""
    return folder / f"result_isl{point.isl}_osl{point.osl}_conc{point.conc}.json"


def samples_path(folder: Path, point: Point) -> Path:
    """The file of a point's raw samples."""
    return folder / f"samples_isl{point.isl}_osl{point.osl}_conc{point.conc}.npz"


def read_result(folder: Path, point: Point) -> Result | None:
    """The result of a point; None where there is none that can be read."""
    try:
        return Result.from_json(result_path(folder, point).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content; at any moment the old or the new one is there.

    It is on the disk when this returns.

    :raises OSError: It cannot be written; then the old content is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    # A fixed name: what a killed run leaves, the next one overwrites.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    # The new name is on the disk, too, once the folder is.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
