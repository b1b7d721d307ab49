"""The accuracy gate: baselines, and the verdict on three figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from pytest_dsr1.core.text import convert, parse_json, repeated, shown

#: Largest relative distance of each figure from its baseline, above and below; that of the predecessor's gate.
TOLERANCE = 0.03
#: Digits after the point in a reason; more where a figure and the bound it exceeds would look the same.
REASON_DIGITS = 4

# Format history of a file of baselines:
# 1 - {"schema": …, "version": 1, "baselines": [{"model", "task", "source", "figures": {name: value, …}}, …]}
SCHEMA = "pytest-dsr1/accuracy-baselines"
VERSION = 1


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
        return iter(asdict(self).items())


@dataclass(frozen=True, slots=True)
class AccuracyBaseline:
    """The score of a model on a task when it is served correctly.

    :param source: Where the figures come from, in one line.
    :raises ValueError: A figure is not a finite number above 0, so nothing can be compared with it.
    """

    model: Annotated[str, msgspec.Meta(min_length=1)]
    task: Annotated[str, msgspec.Meta(min_length=1)]
    figures: AccuracyFigures
    source: Annotated[str, msgspec.Meta(min_length=1)]

    @property
    def key(self) -> tuple[str, str]:
        """(model, task): what the baseline holds for."""
        return self.model, self.task

    def __post_init__(self) -> None:
        for name, value in self.figures:
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{name} of ({self.model}, {self.task}) is {value}, a baseline needs a finite number above 0"
                )


class GateStatus(StrEnum):
    """`accuracy_validation.status` of a result."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NO_BASELINE = "NO BASELINE"
    NOT_RUN = "NOT RUN"


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Figures as a result file holds them; None (null) was NaN or infinite."""

    bits_per_byte: float | None
    byte_perplexity: float | None
    word_perplexity: float | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The gate's verdict on one point, as `accuracy_validation` of a result holds it.

    :param baselines: The figures that were compared with; None without a baseline, like the two below.
    :param threshold_multiplier: 1 + the tolerance, which is relative, above and below.
    :param baseline_source: Where the figures of the baseline come from.
    :param reason: Why the gate did not pass, in one line; empty when it did.
    """

    status: GateStatus
    baselines: AccuracyFigures | None = None
    threshold_multiplier: float | None = None
    baseline_source: str | None = None
    reason: str = ""

    @property
    def opens(self) -> bool:
        """Whether performance is measured; only a gate that failed forbids it."""
        return self.status is not GateStatus.FAILED

    @property
    def passed(self) -> bool:
        return self.status is GateStatus.PASSED


class MeasuredTask(msgspec.Struct, frozen=True, kw_only=True):
    """What accuracy was measured on, and how.

    :param task: The name under which a baseline is looked up.
    :param tokens: Scored tokens in the served model's vocabulary, without prefix tokens.
    :param words: What `word_perplexity` counts; the task defines what a word is.
    :param bytes: UTF-8 bytes of the documents.
    :param requests: Number of windows; each is one request.
    :param concurrency: Requests in flight.
    :param seconds: Wall clock of the evaluation.
    :param tokenizer: Where the tokenizer is from.
    """

    task: str
    documents: int
    tokens: int
    words: int
    bytes: int
    requests: int
    concurrency: int
    seconds: float
    tokenizer: str
    prefix_token_id: int


#: The verdict of `--accuracy off`.
NOT_RUN = Verdict(status=GateStatus.NOT_RUN, reason="accuracy off")


def judge(
    figures: AccuracyFigures,
    *,
    model: str,
    task: str,
    published: Iterable[AccuracyBaseline],
    given: Iterable[AccuracyBaseline] = (),
    submit: bool = False,
) -> Verdict:
    """Compare the figures of (model, task) with their baseline.

    Each figure must lie within TOLERANCE of the baseline's, bounds included. A figure that is too good fails as well:
    serving does not improve a model, so the measurement is wrong. A failure names the figure that is furthest outside.
    Without a baseline for (model, task) the verdict is NO BASELINE.

    :param published: The project's own baselines.
    :param given: Those of `--accuracy-baseline`. They are preferred, except where results are submitted: a leaderboard
        compares with the published figures.
    """
    first, second = (published, given) if submit else (given, published)
    baseline = next((one for one in (*first, *second) if one.key == (model, task)), None)
    status, reason = _status_and_reason(figures, baseline, f"({model}, {task})")
    if baseline is None:
        return Verdict(status=status, reason=reason)
    return Verdict(
        status=status,
        baselines=baseline.figures,
        threshold_multiplier=1 + TOLERANCE,
        baseline_source=baseline.source,
        reason=reason,
    )


def _status_and_reason(figures: AccuracyFigures, baseline: AccuracyBaseline | None, key: str) -> tuple[GateStatus, str]:
    if broken := [f"{name} is {value}" for name, value in figures if not math.isfinite(value)]:
        return GateStatus.FAILED, f"accuracy gate: {broken[0]}"
    if baseline is None:
        return GateStatus.NO_BASELINE, (
            f"no accuracy baseline for {key}: record one with --record-accuracy-baseline FILE, "
            "then pass it as --accuracy-baseline FILE"
        )
    expected = dict(baseline.figures)
    name, value = max(figures, key=lambda figure: abs(figure[1] / expected[figure[0]] - 1))
    upper, lower = expected[name] * (1 + TOLERANCE), expected[name] * (1 - TOLERANCE)
    if value > upper:
        return GateStatus.FAILED, f"accuracy gate: {name} {_compared(value, '>', upper)}"
    if value < lower:
        return GateStatus.FAILED, (
            f"accuracy gate: {name} {_compared(value, '<', lower)}: "
            f"better by more than {TOLERANCE * 100:g} % means a wrong measurement"
        )
    return GateStatus.PASSED, ""


def _compared(value: float, relation: str, bound: float) -> str:
    """`value relation bound`, in as few digits as show the difference."""
    digits = REASON_DIGITS
    # 17 significant digits distinguish any two doubles.
    while digits < 17 and f"{value:.{digits}f}" == f"{bound:.{digits}f}":
        digits += 1
    return f"{value:.{digits}f} {relation} {bound:.{digits}f}"


class _BaselineFile(msgspec.Struct):
    baselines: tuple[AccuracyBaseline, ...]


def baselines_from_json(text: str, origin: str) -> tuple[AccuracyBaseline, ...]:
    """Read the baselines of one file.

    :param origin: What the text was read from, for the errors.
    :raises ValueError: Not JSON, another schema or version, a field missing or of the wrong type, (model, task) twice.
    """
    document = parse_json(text, origin)
    schema = document.get("schema") if isinstance(document, dict) else document
    if schema != SCHEMA:
        raise ValueError(
            f"{origin} has no accuracy baselines: expected schema {SCHEMA!r}, found {shown(schema)}; "
            "--record-accuracy-baseline writes such a file"
        )
    if (version := document.get("version")) != VERSION:
        raise ValueError(f"{origin} has version {shown(version)} of {SCHEMA}, this version reads {VERSION}")
    baselines = convert(document, _BaselineFile, origin).baselines
    if twice := repeated(baseline.key for baseline in baselines):
        raise ValueError(f"{origin} has two baselines for ({twice[0]}, {twice[1]})")
    return baselines


def baselines_to_json(baselines: Iterable[AccuracyBaseline]) -> str:
    """The text of a file; of several baselines for one (model, task), the last."""
    latest = {one.key: one for one in baselines}
    document = {"schema": SCHEMA, "version": VERSION, "baselines": msgspec.to_builtins(list(latest.values()))}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
