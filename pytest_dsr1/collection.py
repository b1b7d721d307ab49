"""Which of the two tests exist, under which ids, and in which order."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from pytest_dsr1.core.config import CONCURRENCIES, Mode, Point, SweepConfig

#: The parameter that makes a test one of the sweep.
POINT = "dsr1_point"
#: What the tests are skipped for, and what the closing summary says, while no lengths are typed.
HINT = "nothing to measure yet; type the lengths, as in: pytest --isl 1024 --osl 1024"


def parametrize(metafunc: pytest.Metafunc, config: SweepConfig | None) -> None:
    """Give a sweep's test its points; without lengths, placeholders that `-k conc16` finds all the same."""
    if POINT not in metafunc.fixturenames:
        return
    points: Iterable[Any]
    if config is None:
        skip = pytest.mark.skip(reason=HINT)
        points = [pytest.param(None, id=f"isl?-osl?-conc{conc}", marks=skip) for conc in CONCURRENCIES]
    else:
        points = [pytest.param(point, id=point.id) for point in config.points]
    metafunc.parametrize(POINT, points, scope="session")


def point_of(item: pytest.Item) -> Point | None:
    """The point that a test belongs to; None if it is none of a sweep's."""
    callspec = getattr(item, "callspec", None)
    point = callspec.params.get(POINT) if callspec is not None else None
    return point if isinstance(point, Point) else None


def exists(function: object, config: SweepConfig) -> bool:
    """Whether a test function is collected at all; in mode acc those that need a load are not."""
    if config.mode is not Mode.ACC or not inspect.isfunction(function):
        return True
    return not {"accurate", "load"} <= inspect.signature(function).parameters.keys()


def measures_performance(item: pytest.Item) -> bool:
    return "load" in getattr(item, "fixturenames", ())


def test_name(item: pytest.Item) -> str:
    """The test's name without its id."""
    return str(getattr(item, "originalname", None) or item.name)


def arrange(
    items: list[pytest.Item], config: SweepConfig, missing: frozenset[tuple[Point, str]] | None
) -> Sequence[pytest.Item]:
    """Put a sweep's tests in sweep order among themselves, whatever a shuffling plugin did; others stay in place.

    :param missing: What a resumed batch still misses, as (point, name of the test); None: everything is run.
    :return: The tests that were taken out, to be reported as deselected.
    """
    dropped = []
    if missing is not None:
        dropped = [item for item in items if (point := point_of(item)) and (point, test_name(item)) not in missing]
        items[:] = [item for item in items if item not in dropped]
    place = {point: number for number, point in enumerate(config.points)}
    ours = [(number, point) for number, item in enumerate(items) if (point := point_of(item)) is not None]
    ordered = sorted(
        ours, key=lambda pair: (place.get(pair[1], len(place)), measures_performance(items[pair[0]]), pair[0])
    )
    moved = [items[number] for number, _ in ordered]
    for (number, _), item in zip(ours, moved, strict=True):
        items[number] = item
    return dropped
