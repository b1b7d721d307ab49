"""What B200 was measured at: the published table, comparison with it, and an audit of it.

Official figures are compared with as they were published, since leaderboards expect that; what is wrong with a row is
said in its remark, and `audit` recomputes why. This module parses text; finding the file is its caller's business.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pytest_dsr1.core.config import Point, Scenario

#: How far the GPUs that a row implies may be from those it says it used; healthy rows stay within 7 %.
GPUS_TOLERANCE = 0.10
#: How much of the median E2E decoding at the median pace may fill. Medians of two quantities need not add up exactly:
#: healthy rows reach 1.024.
DECODE_SHARE_LIMIT = 1.05

_BASELINE = "b200_baseline_nv1126"
#: Ratio in a result -> our field, its counterpart in the result's baseline object. The order of a result file.
RATIOS: Mapping[str, tuple[str, str]] = {
    "tput_per_gpu_ratio_vs_b200_1126": ("tput_per_gpu", f"{_BASELINE}.b200_tput_pergpu_1126"),
    "median_e2e_ratio_vs_b200_1126": ("median_e2el_ms", f"{_BASELINE}.b200_median_e2e_1126"),
    "interactivity_ratio_vs_b200_1126": ("interactivity", f"{_BASELINE}.b200_median_intvty_1126"),
}


class BaselineError(ValueError):
    """A baseline file does not say what it should; the message names file, row and field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class B200Row:
    """The published figures of one configuration, numbers as their file writes them (10407 stays an integer).

    :param median_e2e_ms: Median end-to-end latency in ms.
    :param median_interactivity: Tokens per second and user, 1000 / median TPOT in ms.
    :param tput_per_gpu: Input and generated tokens per second and GPU.
    :param remark: What the audit found wrong with the row; empty if nothing.
    """

    isl: int
    osl: int
    conc: int
    median_e2e_ms: float
    median_interactivity: float
    tput_per_gpu: float
    remark: str = ""

    @property
    def point(self) -> Point:
        """The configuration that the row is about."""
        return Point(Scenario(self.isl, self.osl), self.conc)

    def to_fields(self) -> dict[str, float]:
        """The row as a result file holds it, in its order."""
        return {
            "b200_median_e2e_1126": self.median_e2e_ms,
            "b200_tput_pergpu_1126": self.tput_per_gpu,
            "b200_median_intvty_1126": self.median_interactivity,
        }

    def gpus_implied(self, range_ratio: float) -> float:
        """How many GPUs it took, if latency and throughput are of one run (Little's law).

        CONC requests of (ISL + OSL) * (1 + r) / 2 tokens each, the mean of lengths drawn from r * L to L, are done
        every E2E; that throughput over the one per GPU is the number of GPUs.
        """
        tokens_in_flight = self.conc * _mean_length(self.isl + self.osl, range_ratio)
        return tokens_in_flight / (self.median_e2e_ms / 1000.0) / self.tput_per_gpu

    def decode_share(self, range_ratio: float) -> float:
        """The part of E2E that decoding takes at this interactivity: below 1, if both are of one run."""
        decode_s = (_mean_length(self.osl, range_ratio) - 1) / self.median_interactivity
        return decode_s / (self.median_e2e_ms / 1000.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class B200Table:
    """A published table, keyed by (isl, osl, conc).

    :param source: Where the figures are from.
    :param gpus: How many GPUs the rows were measured on, as published.
    :param range_ratio: The range ratio that the rows fit; lengths were drawn from r * L to L.
    :param remark: What holds for all rows.
    """

    name: str
    source: str
    gpus: int
    range_ratio: float
    remark: str
    rows: tuple[B200Row, ...] = field(repr=False)

    @classmethod
    def from_json(cls, text: str, *, name: str = "B200 table") -> B200Table:
        """Parse a file of `baselines/`; `name` is what errors call it.

        :raises BaselineError: Not JSON, a field missing, unknown or out of range, or two rows for one configuration.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BaselineError(f"{name}: not JSON: {error}") from error
        table = _object(document, cls, name)
        if not isinstance(table["rows"], list) or not table["rows"]:
            raise BaselineError(f"{name}: rows must be a list with at least one row")
        rows: dict[Point, B200Row] = {}
        for number, raw in enumerate(table["rows"], start=1):
            row = _row(raw, f"{name}, row {number}")
            if row.point in rows:
                raise BaselineError(f"{name}, row {number}: a second row for {row.point.id}; each has one")
            rows[row.point] = row
        range_ratio = _positive(table, "range_ratio", name)
        if range_ratio > 1:
            raise BaselineError(f"{name}: range_ratio is {range_ratio}, must be at most 1")
        return cls(
            name=_text(table, "name", name),
            source=_text(table, "source", name),
            gpus=_positive_int(table, "gpus", name),
            range_ratio=range_ratio,
            remark=_text(table, "remark", name),
            rows=tuple(rows.values()),
        )

    def row(self, point: Point) -> B200Row | None:
        """The row for `point`; None where nothing was published."""
        return next((row for row in self.rows if row.point == point), None)

    def audit(self) -> dict[Point, tuple[str, ...]]:
        """What does not add up within a row, for each row where something does not."""
        return {row.point: problems for row in self.rows if (problems := self._audit_row(row))}

    def _audit_row(self, row: B200Row) -> tuple[str, ...]:
        problems = []
        gpus = row.gpus_implied(self.range_ratio)
        if abs(gpus / self.gpus - 1) > GPUS_TOLERANCE:
            problems.append(f"latency and throughput per GPU imply {gpus:.2f} GPUs, not {self.gpus}")
        share = row.decode_share(self.range_ratio)
        if share > DECODE_SHARE_LIMIT:
            problems.append(f"at its interactivity, decoding alone takes {share:.2f} of the E2E latency")
        return tuple(problems)


def compare(performance: Mapping[str, Any], row: B200Row) -> dict[str, Any]:
    """The comparison with `row`, as a result file holds it: the baseline, then the exact quotients.

    A ratio is absent where `performance` lacks its figure: `tput_per_gpu` when the number of GPUs is unknown,
    `interactivity` when there is no TPOT.

    :param performance: The flat fields of a result: `tput_per_gpu`, `median_e2el_ms`, `interactivity`.
    """
    baseline = row.to_fields()
    comparison: dict[str, Any] = {_BASELINE: baseline}
    for ratio, (ours, theirs) in RATIOS.items():
        if performance.get(ours) is not None:
            comparison[ratio] = performance[ours] / baseline[theirs.removeprefix(f"{_BASELINE}.")]
    return comparison


def _mean_length(length: int, range_ratio: float) -> float:
    return length * (1 + range_ratio) / 2


def _row(raw: object, where: str) -> B200Row:
    values = _object(raw, B200Row, where)
    isl, osl, conc = (_positive_int(values, key, where) for key in ("isl", "osl", "conc"))
    where = f"{where} ({isl}/{osl}/{conc})"
    return B200Row(
        isl=isl,
        osl=osl,
        conc=conc,
        median_e2e_ms=_positive(values, "median_e2e_ms", where),
        median_interactivity=_positive(values, "median_interactivity", where),
        tput_per_gpu=_positive(values, "tput_per_gpu", where),
        remark=_text(values, "remark", where, may_be_empty=True),
    )


def _object(raw: object, kind: type[B200Row | B200Table], where: str) -> dict[str, Any]:
    """`raw`, if it is an object with exactly the fields of `kind`."""
    if not isinstance(raw, dict):
        raise BaselineError(f"{where}: is a {type(raw).__name__}, must be an object")
    expected = [item.name for item in fields(kind)]
    if missing := [key for key in expected if key not in raw]:
        raise BaselineError(f"{where}: lacks {', '.join(missing)}")
    if unknown := sorted(raw.keys() - set(expected)):
        raise BaselineError(f"{where}: has {', '.join(unknown)}, which means nothing; known are {', '.join(expected)}")
    return raw


def _positive(values: Mapping[str, Any], key: str, where: str) -> float:
    """The number at `key`, unconverted: a result repeats it as its source writes it."""
    value = values[key]
    # Compared, not converted: JSON's integers have no largest.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
        return value
    raise BaselineError(f"{where}: {key} is {_shown(value)}, must be a number above 0")


def _positive_int(values: Mapping[str, Any], key: str, where: str) -> int:
    value = _positive(values, key, where)
    if not isinstance(value, int):
        raise BaselineError(f"{where}: {key} is {_shown(value)}, must be a whole number above 0")
    return value


def _text(values: Mapping[str, Any], key: str, where: str, *, may_be_empty: bool = False) -> str:
    value = values[key]
    if not isinstance(value, str) or not (value or may_be_empty):
        raise BaselineError(f"{where}: {key} is {_shown(value)}, must be {'a' if may_be_empty else 'a non-empty'} text")
    return value


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
