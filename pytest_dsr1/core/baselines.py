"""The published B200 table, and the comparison of a result with one of its rows.

Leaderboards expect a comparison with the figures as they were published, so no figure is corrected here. What is wrong
with a row is in its remark; tests/unit/test_baselines.py computes it. The caller reads the file; this module parses it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.text import convert, parse_json, repeated

_BASELINE = "b200_baseline_nv1126"
#: Ratio in a result -> (our figure, its counterpart in the result's baseline object), in the order of a result file.
RATIOS: Mapping[str, tuple[str, str]] = {
    "tput_per_gpu_ratio_vs_b200_1126": ("tput_per_gpu", f"{_BASELINE}.b200_tput_pergpu_1126"),
    "median_e2e_ratio_vs_b200_1126": ("median_e2el_ms", f"{_BASELINE}.b200_median_e2e_1126"),
    "interactivity_ratio_vs_b200_1126": ("interactivity", f"{_BASELINE}.b200_median_intvty_1126"),
}

# 2**53: larger integers are not exact as floats.
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
# A union: numbers stay as their file writes them, and 10407 remains an integer in every result that repeats it.
_Number: TypeAlias = _Count | Annotated[float, Meta(gt=0, le=sys.float_info.max)]
_Text: TypeAlias = Annotated[str, Meta(min_length=1)]


class B200Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The row that a result compares itself with, as a result file holds it."""

    b200_median_e2e_1126: int | float
    b200_tput_pergpu_1126: int | float
    b200_median_intvty_1126: int | float


class B200Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The published figures of one configuration.

    :param median_e2e_ms: Median end-to-end latency in ms.
    :param median_interactivity: Tokens per second and user, 1000 / median TPOT in ms.
    :param tput_per_gpu: Input and generated tokens per second and GPU.
    :param remark: What is wrong with the row; empty if nothing.
    """

    isl: _Count
    osl: _Count
    conc: _Count
    median_e2e_ms: _Number
    median_interactivity: _Number
    tput_per_gpu: _Number
    remark: str

    @property
    def point(self) -> Point:
        return Point(Scenario(self.isl, self.osl), self.conc)

    @property
    def baseline(self) -> B200Baseline:
        """The row under the names of a result file."""
        return B200Baseline(
            b200_median_e2e_1126=self.median_e2e_ms,
            b200_tput_pergpu_1126=self.tput_per_gpu,
            b200_median_intvty_1126=self.median_interactivity,
        )


class B200Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published table with one row for each (isl, osl, conc).

    :param source: Where the figures are from.
    :param gpus: How many GPUs the rows were measured on, as published.
    :param range_ratio: The range ratio r that the rows fit: lengths were drawn from r * L to L.
    :param remark: What holds for all rows.
    """

    name: _Text
    source: _Text
    gpus: _Count
    range_ratio: Annotated[float, Meta(gt=0, le=1)]
    remark: _Text
    rows: Annotated[tuple[B200Row, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if twice := repeated(row.point for row in self.rows):
            raise ValueError(f"two rows for {twice.id}; each configuration has one")

    @classmethod
    def from_json(cls, text: str, *, name: str = "B200 table") -> B200Table:
        """Parse a file of `baselines/`; errors call it `name`.

        :raises ValueError: Not JSON, a field missing, unknown or out of range, or two rows for one configuration; the
            message names file, row and field, what was expected and what was found.
        """
        return convert(parse_json(text, name), cls, name)

    def row(self, point: Point) -> B200Row | None:
        """The row for `point`; None where nothing was published."""
        return next((row for row in self.rows if row.point == point), None)


def compare(performance: Mapping[str, Any], row: B200Row) -> dict[str, Any]:
    """Fields of a result that compare it with `row`: the baseline, exact quotients.

    A ratio is absent where `performance` lacks its figure: `tput_per_gpu` when the number of GPUs is unknown,
    `interactivity` when there is no TPOT.

    :param performance: The flat fields of a result: `tput_per_gpu`, `median_e2el_ms`, `interactivity`.
    """
    comparison: dict[str, Any] = {_BASELINE: row.baseline}
    for ratio, (ours, theirs) in RATIOS.items():
        if performance.get(ours) is not None:
            comparison[ratio] = performance[ours] / getattr(row.baseline, theirs.removeprefix(f"{_BASELINE}."))
    return comparison
