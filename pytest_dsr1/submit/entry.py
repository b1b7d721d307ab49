"""From a result to the values that are sent, and why it may not be sent."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pytest_dsr1.core.evidence import Severity
from pytest_dsr1.core.gate import GateStatus
from pytest_dsr1.core.result import Result
from pytest_dsr1.submit.schema import LABELS, Field, Schema

#: From a result, and whether its leaderboard is on this machine, to why it may not be sent: one line for each reason.
Objections: TypeAlias = Callable[[Result, bool], Iterable[str]]


class EntryError(ValueError):
    """A value that a leaderboard needs is missing, or may not be sent."""


@dataclass(frozen=True)
class Entry:
    """The values of one result. A leaderboard's schema selects and orders them.

    :param values: By field; one that the result does not have is absent.
    """

    values: Mapping[Field, str | int | float]

    @property
    def conc(self) -> int:
        """The concurrency of the result's point."""
        return int(self.values[Field.CONC])

    def key(self, url: str) -> str:
        """Identifies this entry on the leaderboard at `url`, in whatever order it is sent."""
        content = json.dumps([url, sorted((str(field), value) for field, value in self.values.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def data(self, schema: Schema) -> list[str | int | float | None]:
        """The values in the order of `schema`.

        :raises EntryError: A value is missing that may not be left empty.
        """
        missing = [LABELS[field] for field in schema.required if field not in self.values]
        if missing:
            why = ": no B200 baseline is known for these lengths" if any("B200" in label for label in missing) else ""
            raise EntryError(f"the leaderboard needs {', '.join(missing)}, which the result lacks{why}")
        return [self.values.get(field) for field in schema.fields]


def make_entry(result: Result, team: str) -> Entry:
    """The values of `result` in full precision.

    :raises EntryError: A value is not a finite number above 0, or the concurrency is missing.
    """
    conc = result.benchmark_args.max_concurrency if result.benchmark_args is not None else 0
    if conc < 1:
        raise EntryError(f"its concurrency is {conc}, not a whole number from 1")
    # Accuracy and B200's figures are in objects of their own.
    places = (result, result.b200_baseline_nv1126, result.accuracy)
    values: dict[Field, str | int | float] = {Field.TEAM: team, Field.CONC: conc}
    for field in Field:
        value = next((found for place in places if (found := getattr(place, field, None)) is not None), None)
        if field in values or value is None:
            continue
        if not math.isfinite(value) or value <= 0:
            raise EntryError(f"{LABELS[field]} is {value!r}, not a finite number above 0")
        values[field] = value
    return Entry(values)


def own_objections(result: Result, loopback: bool) -> Iterator[str]:
    """Why `result` may not be sent, the most exact reason first; nothing if it may.

    :param loopback: Whether the leaderboard is on this machine, so that the submission is a rehearsal.
    """
    if result.engine == "reference" and not loopback:
        yield "it was measured on the reference engine, whose results are only sent to a leaderboard on this machine"
    elif result.engine not in ("reference", "external", "sglang"):
        yield f"it was measured on an engine that is not known: {result.engine!r}"
    if result.accuracy_validation.status is not GateStatus.PASSED:
        yield f"accuracy is {result.accuracy_validation.status}"
    if result.accuracy_task is not None and "[:" in result.accuracy_task.task:
        yield f"its accuracy was measured on a part of the task only: {result.accuracy_task.task} (--accuracy-limit)"
    requested = result.benchmark_args.num_prompts if result.benchmark_args is not None else None
    completed = result.successful_requests
    if requested is None or completed != requested:
        yield f"it is not complete: {completed or 0} of {requested or 'an unknown number of'} requests succeeded"
    for finding in result.findings:
        if finding.severity is Severity.REJECT:
            yield f"{finding.check}: {finding.message}"
    if result.server.num_gpus is None:
        yield "the number of GPUs is unknown, so there is no throughput per GPU; type --tp"
    # Last, because the verdict repeats one of the reasons above in fewer words.
    if not result.passed:
        yield f"it did not pass{': ' + result.reason if result.reason else ''}"
