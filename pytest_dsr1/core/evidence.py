"""What a result file says, read with suspicion: every figure is looked at before anything is computed from it.

A result may be ours or somebody else's, whole or mutilated, so nothing is taken for granted: a figure is a number
within its range, or it is not there. Others print figures with few digits; such a figure stands for every value that
would be printed alike, and two of them contradict each other only if no such values agree.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pytest_dsr1.core.baselines import RATIOS, B200Table
from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.samples import RequestSample
from pytest_dsr1.core.statistics import LATENCIES

#: Stands for what is not there; None stands for a null, which is there and wrong.
ABSENT = object()
#: How far two ways of computing one figure may differ.
RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Figure:
    """What a figure in a result may be: a finite number above 0, and what else is said here.

    :param exact: Not rounded when printed: a count, an option, a published constant.
    :param nullable: Null where it is unknown.
    """

    whole: bool = False
    exact: bool = False
    may_be_zero: bool = False
    at_most: float = sys.float_info.max
    nullable: bool = False

    def problem(self, value: object) -> str | None:
        """What keeps `value` from being this figure; None if nothing does."""
        if value is None and self.nullable:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"is {shown(value)}, not a number"
        # Compared, not converted: JSON's integers have no largest.
        if not -sys.float_info.max <= value <= sys.float_info.max:
            return "is not finite"
        if value < 0 or (value == 0 and not self.may_be_zero):
            return f"is {value}, {'below 0' if value < 0 else 'not above 0'}"
        if value > self.at_most:
            return f"is {value}, above {self.at_most}"
        if self.whole and value != int(value):
            return f"is {value}, not a whole number"
        return None


_TYPE_NAMES: Mapping[type, str] = {type(None): "null", bool: "a boolean", list: "a list", dict: "an object"}


def shown(value: object) -> str:
    """A value that should not be there, short enough for a message."""
    # Not repr() of numbers and containers: it has no limit, and Python refuses it for integers of 4,301 digits.
    return f"{value[:200]!r}" if isinstance(value, str) else _TYPE_NAMES.get(type(value), "a number")


_MEASURED = Figure()
_MEASURED_OR_ZERO = Figure(may_be_zero=True)
_COUNT = Figure(whole=True, exact=True)
COUNT_OR_ZERO = Figure(whole=True, exact=True, may_be_zero=True)
_CONSTANT = Figure(exact=True)


def _latency(latency: str) -> Figure:
    """An ITL may be 0: events that arrive together are read together."""
    return _MEASURED_OR_ZERO if latency == "itl" else _MEASURED


#: Statistics of a distribution that can only rise in this order.
ORDERED = ("min", "p50", "p90", "p95", "p99", "max")
#: What a performance measurement consists of, at the top of a result; in mode acc none of it is there.
PERFORMANCE: Mapping[str, Figure] = {
    "successful_requests": COUNT_OR_ZERO,
    "benchmark_duration": _MEASURED,
    "total_input_tokens": _COUNT,
    "total_generated_tokens": _COUNT,
    "request_throughput": _MEASURED,
    "output_throughput": _MEASURED,
    "total_token_throughput": _MEASURED,
    **{f"{name}_{latency}_ms": _latency(latency) for latency in LATENCIES for name in ("mean", "median", "p99")},
}
#: What was asked for.
ARGUMENTS: Mapping[str, Figure] = {
    "benchmark_args.random_input_len": _COUNT,
    "benchmark_args.random_output_len": _COUNT,
    "benchmark_args.random_range_ratio": Figure(exact=True, may_be_zero=True, at_most=1.0),
    "benchmark_args.num_prompts": _COUNT,
    "benchmark_args.max_concurrency": _COUNT,
}
#: Every figure that a check reads, by its dotted path.
FIGURES: Mapping[str, Figure] = {
    **PERFORMANCE,
    **ARGUMENTS,
    **{f"latency_ms.{latency}.{name}": _latency(latency) for latency in LATENCIES for name in ("mean", *ORDERED)},
    **{f"latency_ms.{latency}.std": _MEASURED_OR_ZERO for latency in LATENCIES},
    **{f"latency_ms.{latency}.count": _COUNT for latency in LATENCIES},
    "client.prefix_cache.prompt_tokens": _COUNT,
    "client.prefix_cache.cached_tokens": COUNT_OR_ZERO,
    "server.num_gpus": Figure(whole=True, exact=True, nullable=True),
    "tput_per_gpu": _MEASURED,
    "interactivity": _MEASURED,
    **dict.fromkeys(RATIOS, _MEASURED),
    **{baseline: _CONSTANT for _, baseline in RATIOS.values()},
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A positive figure as exactly as it is known: it lies from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def printed(cls, value: float) -> Reading:
        """What `value` can stand for if it was rounded to the digits that it shows: 4 to units, 4.0 to tenths."""
        exponent = Decimal(repr(value)).as_tuple().exponent
        half_a_unit = 0.5 * 10.0 ** int(exponent)
        return cls(float(value) - half_a_unit, float(value) + half_a_unit)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Reading:
        return Reading(self.low * factor, self.high * factor)

    def __truediv__(self, other: Reading) -> Reading:
        return Reading(self.low / other.high, self.high / other.low)

    def distance(self, other: Reading) -> float:
        """How far apart they are at least; 0 if they may be the same."""
        return max(0.0, self.low - other.high, other.low - self.high)

    def agrees(self, other: Reading) -> bool:
        """Whether both can be one figure, computed in two ways."""
        return self.distance(other) <= RELATIVE_TOLERANCE * max(self.high, other.high)

    def __format__(self, spec: str) -> str:
        return format((self.low + self.high) / 2, spec)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one measurement.

    :param result: The parsed result file.
    :param samples: The measured requests, where the raw samples are at hand.
    :param b200: The table whose rows the result compares itself with.
    """

    result: Mapping[str, Any]
    samples: Sequence[RequestSample] | None = None
    b200: B200Table | None = None

    @property
    def ours(self) -> bool:
        """Whether this project wrote the result: figures in full precision, every field there."""
        return "schema_version" in self.result

    @property
    def has_performance(self) -> bool:
        """Whether performance was measured at all; it is not in mode acc."""
        return any(key in self.result for key in (*PERFORMANCE, "latency_ms", "tput_per_gpu", "interactivity"))

    @property
    def point(self) -> Point | None:
        """The configuration that the result says it is of; None where it does not say."""
        isl, osl, conc = (
            self.count(f"benchmark_args.{name}")
            for name in ("random_input_len", "random_output_len", "max_concurrency")
        )
        return Point(Scenario(isl, osl), conc) if isl and osl and conc else None

    def at(self, path: str) -> Any:
        """Whatever stands at a dotted path; ABSENT if nothing does."""
        value: Any = self.result
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return ABSENT
            value = value[key]
        return value

    def number(self, path: str) -> float | None:
        """The figure at `path`, one of FIGURES, if it is there and what it should be."""
        value = self.at(path)
        return None if value is ABSENT or value is None or FIGURES[path].problem(value) else float(value)

    def count(self, path: str) -> int | None:
        """The whole number at `path`, likewise."""
        value = self.number(path)
        return None if value is None else int(value)

    def reading(self, path: str) -> Reading | None:
        """The figure at `path`, likewise, with what rounding may have taken from it."""
        value = self.number(path)
        if value is None:
            return None
        return Reading(value, value) if self.ours or FIGURES[path].exact else Reading.printed(self.at(path))

    def problems(self) -> Iterator[str]:
        """Every figure that is there and is not what it should be, and why."""
        outcomes = self.at("client.requests.outcomes")
        names = outcomes if isinstance(outcomes, Mapping) else ()
        counts = {f"client.requests.outcomes.{name}": COUNT_OR_ZERO for name in names}
        for path, figure in {**FIGURES, **counts}.items():
            value = self.at(path)
            if value is not ABSENT and (problem := figure.problem(value)):
                yield f"{path} {problem}"

    def not_finite(self) -> Iterator[str]:
        """Every NaN and infinity, wherever it stands in the result."""
        # A loop, since recursion has a limit and the depth of a stranger's file has none.
        pending: list[tuple[str, Any]] = [("", self.result)]
        while pending:
            path, value = pending.pop()
            if isinstance(value, Mapping):
                pending.extend((f"{path}.{key}" if path else f"{key}", item) for key, item in value.items())
            elif isinstance(value, list):
                pending.extend((f"{path}[{number}]", item) for number, item in enumerate(value))
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{path} is not finite"
