"""What a check reads and reports: the figures of a result file, and findings.

A result file may be ours or another tool's, complete or damaged. So no figure is used before it is validated: it is a
number within its range, or it counts as absent. Other tools print figures with few digits. Such a figure stands for
every value that rounds to it, and two figures contradict each other only if no such values agree.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from pytest_dsr1.core.baselines import RATIOS, B200Table
from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.samples import LATENCIES, ORDERED, Figures, RequestSample
from pytest_dsr1.core.text import one_line, shown


class Severity(StrEnum):
    """What a finding does to a result."""

    REJECT = "reject"
    """The result contradicts itself: the test fails, and the result is not submitted."""
    WARN = "warn"
    """The result is possible, but a person should look at it."""


class Finding(msgspec.Struct, frozen=True):
    """One problem that a check found in a result.

    :param check: Number of the check in the list of invariants, such as "h2"; any short name for a check of yours.
    :param message: The figures, the limit, and what that means. Kept on one line.
    """

    check: str
    severity: Severity
    message: str

    def __post_init__(self) -> None:
        # Names and texts from another tool's file may hold line breaks and escape sequences.
        msgspec.structs.force_setattr(self, "message", one_line(self.message))

    def __str__(self) -> str:
        return f"{self.check} ({self.severity}): {self.message}"


def reject(check: str, message: str) -> Finding:
    """A finding that fails the point."""
    return Finding(check, Severity.REJECT, message)


def warn(check: str, message: str) -> Finding:
    """A finding that is only reported."""
    return Finding(check, Severity.WARN, message)


#: Marks a key that is absent. None marks a null, which is present, and wrong for nearly all figures.
ABSENT = object()
#: Largest relative difference between two computations of one figure.
RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ValidRange:
    """The valid values of one figure: finite, above 0, and within these bounds.

    :param whole: An integer, even if it is written as 4.0.
    :param exact: Never rounded when it is printed: a count, an option, a published constant.
    :param nullable: May be null, where it is unknown.
    """

    whole: bool = False
    exact: bool = False
    may_be_zero: bool = False
    at_most: float = sys.float_info.max
    nullable: bool = False

    def problem(self, value: object) -> str | None:
        """Why `value` is not valid; None if it is."""
        if value is None and self.nullable:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"is {shown(value)}, not a number"
        # Not converted to float first: an integer in JSON may be too large for that.
        if not -sys.float_info.max <= value <= sys.float_info.max:
            return "is not finite"
        if value < 0 or (value == 0 and not self.may_be_zero):
            return f"is {shown(value)}, {'below 0' if value < 0 else 'not above 0'}"
        if value > self.at_most:
            return f"is {shown(value)}, above {self.at_most}"
        if self.whole and value != int(value):
            return f"is {shown(value)}, not a whole number"
        return None


_MEASURED = ValidRange()
_MEASURED_OR_ZERO = ValidRange(may_be_zero=True)
_COUNT = ValidRange(whole=True, exact=True)
COUNT_OR_ZERO = ValidRange(whole=True, exact=True, may_be_zero=True)
_CONSTANT = ValidRange(exact=True)


#: Figures of a performance measurement, at the top level of a result; all are absent in mode acc.
PERFORMANCE: Mapping[str, ValidRange] = {
    # An ITL may be 0: two events that arrive together are read at the same time.
    **{name: _MEASURED_OR_ZERO if "_itl_" in name else _MEASURED for name in Figures.__struct_fields__},
    "successful_requests": COUNT_OR_ZERO,
    "total_input_tokens": _COUNT,
    "total_generated_tokens": _COUNT,
}
#: The values of each distribution; a standard deviation may be 0.
DISTRIBUTIONS: Mapping[str, ValidRange] = {
    f"latency_ms.{latency}.{name}": _MEASURED_OR_ZERO if latency == "itl" or name == "std" else _MEASURED
    for latency in LATENCIES
    for name in ("mean", "std", *ORDERED)
}
#: Options that figures are checked against.
ARGUMENTS: Mapping[str, ValidRange] = {
    "benchmark_args.random_input_len": _COUNT,
    "benchmark_args.random_output_len": _COUNT,
    "benchmark_args.random_range_ratio": ValidRange(exact=True, may_be_zero=True, at_most=1.0),
    "benchmark_args.num_prompts": _COUNT,
    "benchmark_args.max_concurrency": _COUNT,
}
#: Every figure that a check reads, by its dotted path.
FIGURES: Mapping[str, ValidRange] = {
    **PERFORMANCE,
    **ARGUMENTS,
    **DISTRIBUTIONS,
    **{f"latency_ms.{latency}.count": _COUNT for latency in LATENCIES},
    "client.prefix_cache.prompt_tokens": _COUNT,
    "client.prefix_cache.cached_tokens": COUNT_OR_ZERO,
    "server.num_gpus": ValidRange(whole=True, exact=True, nullable=True),
    "tput_per_gpu": _MEASURED,
    "interactivity": _MEASURED,
    **dict.fromkeys(RATIOS, _MEASURED),
    **{baseline: _CONSTANT for _, baseline in RATIOS.values()},
}


@dataclass(frozen=True, slots=True)
class Reading:
    """A positive figure whose true value lies between `low` and `high`.

    :param known: Whether it is there; a figure that is not, or that is computed from such a one, contradicts nothing.
    """

    low: float
    high: float
    known: bool = True

    @classmethod
    def printed(cls, value: float) -> Reading:
        """The values that round to `value` at the digits it shows.

        4 is rounded to units, 4.0 to tenths.
        """
        exponent = Decimal(repr(value)).as_tuple().exponent
        half_a_unit = 0.5 * 10.0 ** int(exponent)
        return cls(float(value) - half_a_unit, float(value) + half_a_unit)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.low + other.low, self.high + other.high, self.known and other.known)

    def __mul__(self, factor: float) -> Reading:
        return Reading(self.low * factor, self.high * factor, self.known)

    def __truediv__(self, other: Reading) -> Reading:
        high = self.high / other.low if other.low else math.inf
        return Reading(self.low / other.high, high, self.known and other.known)

    def distance(self, other: Reading) -> float:
        """The smallest possible difference; 0 if both may be the same value."""
        return max(0.0, self.low - other.high, other.low - self.high)

    def agrees(self, other: Reading) -> bool:
        """Whether both may be the same figure, computed in two ways."""
        if not (self.known and other.known):
            return True
        return self.distance(other) <= RELATIVE_TOLERANCE * max(self.high, other.high)

    def __format__(self, spec: str) -> str:
        return format((self.low + self.high) / 2, spec)


#: A figure that is absent may have any value.
UNKNOWN = Reading(0.0, math.inf, known=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known about one measurement.

    :param result: The parsed result file, as it is: use `number`, `count` and `reading` to get figures from it.
    :param samples: The measured requests; empty where the raw samples are not available.
    :param b200: The published baselines; None where they are not available.
    """

    result: Mapping[str, Any]
    samples: Sequence[RequestSample] = ()
    b200: B200Table | None = None

    @property
    def ours(self) -> bool:
        """Whether this project wrote the result.

        Then its figures have full precision, and no field may be missing.
        """
        return "schema_version" in self.result

    @property
    def point(self) -> Point | None:
        """The configuration that the result names; None where it names none."""
        isl, osl, conc = (
            self.count(f"benchmark_args.{name}")
            for name in ("random_input_len", "random_output_len", "max_concurrency")
        )
        return Point(Scenario(isl, osl), conc) if isl and osl and conc else None

    def at(self, path: str) -> Any:
        """The value at a dotted path, of any type; ABSENT if there is none."""
        value: Any = self.result
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return ABSENT
            value = value[key]
        return value

    def number(self, path: str) -> float | None:
        """The figure at `path`; None if it is absent or not valid.

        Valid is what FIGURES says of `path`; for any other path, a finite number from 0.
        """
        value = self.at(path)
        figure = FIGURES.get(path, _MEASURED_OR_ZERO)
        return None if value is ABSENT or value is None or figure.problem(value) else float(value)

    def count(self, path: str) -> int | None:
        """The same, as an integer."""
        value = self.number(path)
        return None if value is None else int(value)

    def reading(self, path: str) -> Reading:
        """The same, with the uncertainty that rounding left; UNKNOWN in the place of None."""
        value = self.number(path)
        if value is None:
            return UNKNOWN
        exact = self.ours or FIGURES.get(path, _MEASURED_OR_ZERO).exact
        return Reading(value, value) if exact else Reading.printed(self.at(path))

    def problems(self) -> Iterator[str]:
        """Each figure that is present but not valid, and why."""
        outcomes = self.at("client.requests.outcomes")
        names = outcomes if isinstance(outcomes, Mapping) else ()
        counts = {f"client.requests.outcomes.{name}": COUNT_OR_ZERO for name in names}
        for path, figure in {**FIGURES, **counts}.items():
            value = self.at(path)
            if value is not ABSENT and (problem := figure.problem(value)):
                yield f"{path} {problem}"

    def not_finite(self) -> Iterator[str]:
        """Each NaN and infinity, anywhere in the result."""
        # A loop, not a recursion: a file may be nested deeper than Python recurses.
        pending: list[tuple[str, Any]] = [("", self.result)]
        while pending:
            path, value = pending.pop()
            if isinstance(value, Mapping):
                pending.extend((f"{path}.{key}" if path else f"{key}", item) for key, item in value.items())
            elif isinstance(value, list | tuple):
                pending.extend((f"{path}[{number}]", item) for number, item in enumerate(value))
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{path} is not finite"


#: From the evidence to what is wrong with it: nothing, one finding or several.
Check: TypeAlias = Callable[[Evidence], Iterable[Finding]]
