"""From the measurements of a point to its result: composed, checked, judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from pytest_dsr1.core.baselines import B200Table, compare
from pytest_dsr1.core.checks import check_result
from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.evidence import Check, Finding, Severity
from pytest_dsr1.core.gate import Accuracy, AccuracyFigures, GateStatus, MeasuredTask, Verdict
from pytest_dsr1.core.result import (
    SCHEMA_VERSION,
    BenchmarkArgs,
    Client,
    MeasuredServer,
    PointVerdict,
    PrefixCache,
    RequestCounts,
    Result,
    SamplesFile,
    Validation,
)
from pytest_dsr1.core.samples import LoadRun, Performance, summarize
from pytest_dsr1.core.server import Served

#: Failures that a result quotes: enough to see what went wrong. The raw samples have all of them.
QUOTED_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord:
    """The gate's verdict on a point, and what it was made from.

    :param figures: None where nothing was measured, like `task`.
    """

    verdict: Verdict = field(repr=False)
    figures: AccuracyFigures | None = None
    task: MeasuredTask | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line."""
        return self.verdict.reason


@dataclass(frozen=True, kw_only=True)
class LoadRecord:
    """What the load generator measured at a point, and with which prompts.

    :param vocab_size: Prompts are random ids below it; `vocab_source` is where it is from.
    :param prompts_sha256: Of the ids and lengths of the point's prompts.
    :param samples_file: The raw samples beside the result; None if they could not be written.
    :param server_changes: What differed in the server after the point: process, model or arguments.
    :param server_lost: Why the server ended during the point, in one line; empty if it did not.
    :param extra: What plugins add to the result.
    """

    run: LoadRun
    vocab_size: int
    vocab_source: str
    prompts_sha256: str
    samples_file: SamplesFile | None
    server_changes: tuple[str, ...] = ()
    server_lost: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def make_result(
    point: Point,
    config: SweepConfig,
    served: Served,
    accuracy: AccuracyRecord,
    load: LoadRecord | None,
    *,
    performance_due: bool,
    b200: B200Table,
    written: float,
    more_checks: Iterable[Check] = (),
) -> Result:
    """Put a point's result together, check it, and decide whether the point passed.

    :param load: None where performance is not measured, or not yet.
    :param performance_due: Whether a result without performance is unfinished.
    :param written: Epoch seconds.
    :param more_checks: Checks from outside, beside the built-in ones.
    """
    result = Result(
        **({} if load is None else _load_fields(point, config, served, load, b200)),
        accuracy=None if accuracy.figures is None else Accuracy(**dict(accuracy.figures)),
        accuracy_validation=accuracy.verdict,
        accuracy_task=accuracy.task,
        schema_version=SCHEMA_VERSION,
        engine=served.engine,
        written=written,
        server=MeasuredServer(
            **served.to_fields(),
            changes=None if load is None else load.server_changes,
            lost=None if load is None else load.server_lost,
        ),
        # The findings, and the verdict that follows from them, replace these.
        validation=Validation(findings=()),
        verdict=PointVerdict(status="UNFINISHED", reason=""),
    )
    findings = check_result(result.fields, load.run.samples, b200, more_checks) if load is not None else ()
    verdict = _verdict(accuracy.verdict, load, findings, performance_due)
    return msgspec.structs.replace(result, validation=Validation(findings=findings), verdict=verdict)


def _verdict(
    gate: Verdict, load: LoadRecord | None, findings: Sequence[Finding], performance_due: bool
) -> PointVerdict:
    rejecting = [finding for finding in findings if finding.severity is Severity.REJECT]
    if gate.status is GateStatus.FAILED:
        reason = gate.reason
    elif load is None and performance_due:
        return PointVerdict(status="UNFINISHED", reason="performance is not measured yet")
    elif rejecting:
        more = f" (and {len(rejecting) - 1} more findings)" if len(rejecting) > 1 else ""
        reason = f"{rejecting[0].check}: {rejecting[0].message}{more}"
    else:
        reason = gate.reason if gate.status is GateStatus.NO_BASELINE else ""
    return PointVerdict(status="FAILED" if reason else "PASSED", reason=reason)


def _load_fields(
    point: Point, config: SweepConfig, served: Served, load: LoadRecord, b200: B200Table
) -> dict[str, Any]:
    """The fields of a result that a load gives."""
    performance = summarize(load.run)
    fields: dict[str, Any] = {
        "benchmark_args": BenchmarkArgs(
            model=served.model,
            backend="openai-completions",
            base_url=served.url,
            dataset_name="random",
            random_input_len=point.isl,
            random_output_len=point.osl,
            random_range_ratio=config.random_range_ratio,
            num_prompts=load.run.num_prompts,
            num_prompts_source="formula" if config.num_prompts is None else "option",
            max_concurrency=point.conc,
            request_rate="inf",
            num_warmups=config.num_warmups_at(point),
            seed=config.prompt_seed,
            vocab_size=load.vocab_size,
            vocab_source=load.vocab_source,
            prompts_sha256=load.prompts_sha256,
        ),
        "client": _client(load.run, performance),
        "samples": load.samples_file,
        "extra": dict(load.extra) or None,
    }
    if performance is None:
        return {"successful_requests": 0, **fields}
    measured = msgspec.structs.asdict(performance)
    fields |= {name: value for name, value in measured.items() if name in Result.__struct_fields__}
    if served.num_gpus is not None:
        fields["tput_per_gpu"] = fields["total_token_throughput"] / served.num_gpus
    if (row := b200.row(point)) is not None:
        fields |= compare(fields, row)
        fields["b200_remarks"] = tuple(remark for remark in (row.remark, b200.remark) if remark)
    return fields


def _client(run: LoadRun, performance: Performance | None) -> Client:
    failures = (
        f"{kind} {sample.index}: {sample.outcome}: {sample.detail}"
        for kind, samples in (("warm-up", run.warmups), ("request", run.samples))
        for sample in samples
        if not sample.ok
    )
    return Client(
        requests=RequestCounts(
            sent=len(run.samples),
            outcomes=dict(Counter(str(sample.outcome) for sample in run.samples)),
            first_failures=tuple(islice(failures, QUOTED_FAILURES)),
        ),
        reconnects=run.reconnects,
        cpu_s=run.cpu_s,
        wall_s=run.wall_s,
        loop_lag_ms=run.loop_lag,
        aborted=run.aborted,
        prefix_cache=_prefix_cache(run),
        slots_busy=None if performance is None else performance.slots_busy,
        slot_idle_ms=None if performance is None else performance.slot_idle_ms,
    )


def _prefix_cache(run: LoadRun) -> PrefixCache | None:
    """Prompt tokens in the server's cache; None where it does not report them."""
    told = [sample for sample in run.completed if sample.cached_tokens is not None]
    prompt_tokens = sum(sample.requested_input_tokens for sample in told)
    if not prompt_tokens:
        return None
    cached_tokens = sum(sample.cached_tokens or 0 for sample in told)
    return PrefixCache(requests_told=len(told), prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)
