"""The accuracy gate: three figures against a baseline, and the verdict as a value."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

#: How far each figure may be from its baseline, to either side; the seed's gate.
TOLERANCE = 0.03
#: Digits after the point in a reason, raised until a figure and the bound it breaks no longer look the same.
REASON_DIGITS = 4


@dataclass(frozen=True, slots=True)
class AccuracyFigures:
    """One log-likelihood on three scales.

    With `ll` the natural log-likelihood of the whole corpus: `bits_per_byte` = -ll / (bytes ln 2),
    `byte_perplexity` = exp(-ll / bytes), `word_perplexity` = exp(-ll / words).
    """

    bits_per_byte: float
    byte_perplexity: float
    word_perplexity: float

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """(name, value) of each figure, in the leaderboard's order."""
        yield "bits_per_byte", self.bits_per_byte
        yield "byte_perplexity", self.byte_perplexity
        yield "word_perplexity", self.word_perplexity


@dataclass(frozen=True, slots=True)
class AccuracyBaseline:
    """What a model scores on a task when it is served right.

    :param source: Where the figures come from, in one line.
    :raises ValueError: A figure that is not a finite positive number: nothing could be judged by it.
    """

    model: str
    task: str
    figures: AccuracyFigures
    source: str

    def __post_init__(self) -> None:
        for name, value in self.figures:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} of ({self.model}, {self.task}) is {value}, a baseline needs a positive number"
                )


class GateStatus(StrEnum):
    """`accuracy_validation.status` of a result."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NO_BASELINE = "NO BASELINE"
    NOT_RUN = "NOT RUN"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one point.

    :param reason: One line; empty when the gate passed.
    :param baseline: What it was judged by; None without one.
    :param tolerance: Relative, to either side.
    """

    status: GateStatus
    reason: str = ""
    baseline: AccuracyBaseline | None = None
    tolerance: float = TOLERANCE

    @property
    def opens(self) -> bool:
        """Whether performance is measured: always, but behind a gate that failed."""
        return self.status is not GateStatus.FAILED

    @property
    def passed(self) -> bool:
        return self.status is GateStatus.PASSED


#: The verdict of `--accuracy off`.
NOT_RUN = Verdict(GateStatus.NOT_RUN, "accuracy off")


def judge(
    figures: AccuracyFigures,
    baseline: AccuracyBaseline | None,
    *,
    model: str,
    task: str,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Judge what (model, task) scored by its baseline.

    Each figure must lie within `tolerance` of the baseline's, bounds included. Too good fails as well: a model does
    not get better by being served, so the measurement is wrong. A failure names the figure that is furthest outside.

    :param baseline: That of (model, task); None if it has none, which is a verdict of its own.
    """
    broken = [name for name, value in figures if not math.isfinite(value)]
    if broken:
        reason = f"accuracy gate: {broken[0]} is {dict(figures)[broken[0]]}"
        return Verdict(GateStatus.FAILED, reason, baseline, tolerance)
    if baseline is None:
        reason = (
            f"no accuracy baseline for ({model}, {task}): record one with --record-accuracy-baseline FILE, "
            "then pass it as --accuracy-baseline FILE"
        )
        return Verdict(GateStatus.NO_BASELINE, reason, None, tolerance)
    expected = dict(baseline.figures)
    name, value = max(figures, key=lambda figure: abs(figure[1] / expected[figure[0]] - 1))
    upper, lower = expected[name] * (1 + tolerance), expected[name] * (1 - tolerance)
    if value > upper:
        reason = f"accuracy gate: {name} {_compared(value, '>', upper)}"
    elif value < lower:
        reason = (
            f"accuracy gate: {name} {_compared(value, '<', lower)}: "
            f"better by more than {tolerance * 100:g} % means a wrong measurement"
        )
    else:
        return Verdict(GateStatus.PASSED, "", baseline, tolerance)
    return Verdict(GateStatus.FAILED, reason, baseline, tolerance)


def _compared(value: float, relation: str, bound: float) -> str:
    """`value relation bound`, in as few digits as show that it is true."""
    digits = REASON_DIGITS
    # 17 significant digits tell any two doubles apart.
    while digits < 17 and f"{value:.{digits}f}" == f"{bound:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f} {relation} {bound:.{digits}f}"
