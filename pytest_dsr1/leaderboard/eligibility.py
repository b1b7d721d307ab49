"""What may be sent, and why not. Whatever else is to keep a result at home joins `OBJECTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from pytest_dsr1.core.baselines import B200Table
from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.leaderboard.routing import leaderboard_for
from pytest_dsr1.leaderboard.schema import B200_FIELDS, Schema


def server_problem(config: SweepConfig, why: str, *, reference: bool, gpus_known: bool) -> str:
    """Why results of this server could not be submitted whatever they are; empty if they could.

    :param why: Who serves, and why no other.
    """
    urls = [leaderboard_for(scenario, config.leaderboard_url) for scenario in config.scenarios]
    if reference and not all(url is not None and is_loopback(url) for url in urls):
        return (
            f"mode submit, but served by {why}: results of the reference engine never leave the machine; name the "
            "server to be measured with --server-url, or rehearse with --leaderboard-url http://127.0.0.1:PORT "
            "(start one with: python -m pytest_dsr1.leaderboard serve)"
        )
    if not gpus_known:
        return "mode submit needs a throughput per GPU, and the server does not say how many GPUs it has; type --tp N"
    return ""


def lacks_baseline(point: Point, schema: Schema, b200: B200Table) -> bool:
    """Whether the leaderboard insists on figures of B200, and none are published for `point`."""
    wanted = any(field in B200_FIELDS and not schema.may_be_empty(place) for place, field in enumerate(schema.fields))
    return wanted and b200.row(point) is None


#: A result, and whether the leaderboard is on this machine; to reasons, one line each.
Objection: TypeAlias = Callable[[Result, bool], Iterator[str]]


def objections(result: Result, *, loopback: bool) -> tuple[str, ...]:
    """Why `result` may not be sent; empty if it may.

    :param loopback: Whether it would stay on this machine, as a rehearsal.
    """
    return tuple(reason for objection in OBJECTIONS for reason in objection(result, loopback))


def _engine(result: Result, loopback: bool) -> Iterator[str]:
    engine = result.fields.get("engine")
    if engine == "reference" and not loopback:
        yield "it is of the reference engine, whose results never leave the machine"
    elif engine not in ("reference", "external", "sglang"):
        yield f"it is of an engine that is not known: {engine!r}"


def _accuracy(result: Result, _loopback: bool) -> Iterator[str]:
    validation, task = (result.fields.get(name, {}) for name in ("accuracy_validation", "accuracy_task"))
    status = validation.get("status", "missing")
    if status != "PASSED":
        yield f"accuracy is {status}"
    if "[:" in str(task.get("task", "")):
        yield f"its accuracy is of a part of the task only: {task['task']} (--accuracy-limit)"


def _complete(result: Result, _loopback: bool) -> Iterator[str]:
    asked = result.fields.get("benchmark_args", {}).get("num_prompts")
    completed = result.fields.get("successful_requests")
    if asked is None or completed != asked:
        yield f"it is not complete: {completed or 0} of {asked or 'an unknown number of'} requests succeeded"


def _findings(result: Result, _loopback: bool) -> Iterator[str]:
    for finding in result.findings:
        if finding.severity == "reject":
            yield f"{finding.check}: {finding.message}"


def _gpus(result: Result, _loopback: bool) -> Iterator[str]:
    if result.fields.get("server", {}).get("num_gpus") is None:
        yield "the number of GPUs is unknown, so there is no throughput per GPU; type --tp"


def _passed(result: Result, _loopback: bool) -> Iterator[str]:
    if not result.passed:
        yield f"it did not pass{': ' + result.reason if result.reason else ''}"


#: The verdict comes last: it repeats what others say more exactly.
OBJECTIONS: tuple[Objection, ...] = (_engine, _accuracy, _complete, _findings, _gpus, _passed)
