"""Reads the baselines that are packaged, and those that a user names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pytest_dsr1.core.baselines import B200Table
from pytest_dsr1.core.gate import AccuracyBaseline, baselines_from_json

_PACKAGE = Path(__file__).parent.parent
#: In a wheel the folder lies in the package, in a checkout beside it.
_FOLDER = next(folder / "baselines" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "baselines").is_dir())
_B200 = "b200_nv1126.json"


@cache
def b200_table() -> B200Table:
    """The published figures of NVIDIA B200.

    :raises ValueError: The file is damaged.
    """
    return B200Table.from_json((_FOLDER / _B200).read_text(encoding="utf-8"), name=_B200)


@cache
def published_baselines() -> tuple[AccuracyBaseline, ...]:
    """The project's own accuracy baselines.

    :raises ValueError: A file is damaged.
    """
    files = sorted(_FOLDER.glob("accuracy_*.json"))
    return tuple(one for file in files for one in baselines_from_json(file.read_text(encoding="utf-8"), file.name))


def given_baselines(path: Path | None) -> tuple[AccuracyBaseline, ...]:
    """Those of --accuracy-baseline; none without a path.

    :raises OSError, ValueError: The file cannot be read, or holds none.
    """
    return () if path is None else baselines_from_json(path.read_text(encoding="utf-8"), str(path))
