"""The result of one point: its schema, to and from JSON.

The flat fields, `benchmark_args`, `b200_baseline_nv1126`, `accuracy` and `accuracy_validation` are those of the tool
that this project succeeds, under its names and units; every other object is this project's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_dsr1.core.baselines import B200Table, compare
from pytest_dsr1.core.checks import check_result
from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.core.findings import Finding, Severity
from pytest_dsr1.core.gate import AccuracyFigures, GateStatus, Verdict
from pytest_dsr1.core.samples import LoadRun, Outcome
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.statistics import Performance, summarize

# Format history:
# 1 - the fields of the predecessor, and: schema_version, engine, written, verdict, accuracy_task, server, client,
#     latency_ms, validation
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class AccuracyRecord:
    """What the gate said of a point.

    :param figures: None where nothing was measured.
    :param details: Task, documents, tokens, tokenizer …: kept as `accuracy_task`.
    """

    verdict: Verdict = field(repr=False)
    figures: AccuracyFigures | None = None
    details: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line."""
        return self.verdict.reason


@dataclass(frozen=True, kw_only=True)
class LoadRecord:
    """What the load generator saw of a point, and with what it was fed.

    :param vocab_size: Ids of prompts are below it; `vocab_source` says who said so.
    :param prompts_sha256: Of ids and lengths of the point's prompts.
    :param samples_file: Name and sha256 of the raw samples beside the result; None if they could not be kept.
    :param server_changes: What is another server's, or set otherwise, after the point than before it.
    :param server_lost: What became of a server that did not live through the point, in one line; empty if it did.
    """

    run: LoadRun
    vocab_size: int
    vocab_source: str
    prompts_sha256: str
    samples_file: tuple[str, str] | None
    server_changes: tuple[str, ...] = ()
    server_lost: str = ""


@dataclass(frozen=True)
class Result:
    """A result file's content. `fields` is the JSON object; the properties read it."""

    # A failed assertion shows its operands; this one would fill a screen.
    fields: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """:raises ValueError: Not a result of this project, or of another schema version."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or "schema_version" not in fields:
            raise ValueError("not a result of pytest-dsr1: no schema_version")
        if fields["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {fields['schema_version']!r}, this version reads {SCHEMA_VERSION}")
        return cls(fields)

    def to_json(self) -> str:
        """Indented JSON; NaN and infinity, which are not JSON, become null."""
        return json.dumps(_finite(self.fields), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def written(self) -> float:
        """Epoch seconds."""
        return float(self.fields.get("written", 0.0))

    @property
    def status(self) -> str | None:
        """PASSED or FAILED; None while a part of the point is still to be measured."""
        status = self.fields.get("verdict", {}).get("status")
        return str(status) if status in ("PASSED", "FAILED") else None

    @property
    def passed(self) -> bool:
        return self.status == "PASSED"

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line."""
        return str(self.fields.get("verdict", {}).get("reason", ""))

    @property
    def findings(self) -> tuple[Mapping[str, str], ...]:
        """What the checks found: `check`, `severity` (reject or warn), `message`."""
        return tuple(self.fields.get("validation", {}).get("findings", ()))

    @property
    def headline(self) -> dict[str, float]:
        """The figures that a report shows first, by the names of the result."""
        names = (
            "total_token_throughput",
            "output_throughput",
            "tput_per_gpu",
            "median_e2el_ms",
            "median_ttft_ms",
            "median_tpot_ms",
            "interactivity",
            "tput_per_gpu_ratio_vs_b200_1126",
            "median_e2e_ratio_vs_b200_1126",
        )
        return {name: self.fields[name] for name in names if name in self.fields}


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
) -> Result:
    """Put a point's result together, check it, and say whether the point passed.

    :param load: None before performance was measured, and where it is not.
    :param performance_due: Whether a result without performance is only half of one.
    :param written: Epoch seconds.
    """
    fields: dict[str, Any] = {}
    performance = summarize(load.run) if load is not None else None
    if load is not None:
        fields |= _performance_fields(point, config, served, load, performance, b200)
    fields |= _accuracy_fields(accuracy)
    fields |= {"schema_version": SCHEMA_VERSION, "engine": served.engine, "written": written}
    fields["server"] = served.to_fields()
    if load is not None:
        fields["server"] |= {"changes": list(load.server_changes), "lost": load.server_lost}
        fields |= _load_fields(load, performance)
    findings = check_result(fields, load.run.samples, b200) if load is not None else ()
    fields["validation"] = {
        "findings": [
            {"check": finding.check, "severity": str(finding.severity), "message": finding.message}
            for finding in findings
        ]
    }
    status, reason = _verdict(accuracy.verdict, load, findings, performance_due)
    fields["verdict"] = {"status": status, "reason": reason}
    return Result(fields)


def _verdict(
    gate: Verdict, load: LoadRecord | None, findings: Sequence[Finding], performance_due: bool
) -> tuple[str, str]:
    if gate.status is GateStatus.FAILED:
        return "FAILED", gate.reason
    if load is None and performance_due:
        return "UNFINISHED", "performance is not measured yet"
    rejecting = [finding for finding in findings if finding.severity is Severity.REJECT]
    if rejecting:
        more = f" (and {len(rejecting) - 1} more findings)" if len(rejecting) > 1 else ""
        return "FAILED", f"{rejecting[0].check}: {rejecting[0].message}{more}"
    if gate.status is GateStatus.NO_BASELINE:
        return "FAILED", gate.reason
    return "PASSED", ""


def _performance_fields(
    point: Point,
    config: SweepConfig,
    served: Served,
    load: LoadRecord,
    performance: Performance | None,
    b200: B200Table,
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if performance is None:
        fields["successful_requests"] = 0
    else:
        fields |= performance.to_fields()
    fields["benchmark_args"] = {
        "model": served.model,
        "backend": "openai-completions",
        "base_url": served.url,
        "dataset_name": "random",
        "random_input_len": point.isl,
        "random_output_len": point.osl,
        "random_range_ratio": config.random_range_ratio,
        "num_prompts": load.run.num_prompts,
        "num_prompts_source": "formula" if config.num_prompts is None else "option",
        "max_concurrency": point.conc,
        "request_rate": "inf",
        "num_warmups": config.num_warmups_at(point),
        "seed": config.prompt_seed,
        "vocab_size": load.vocab_size,
        "vocab_source": load.vocab_source,
        "prompts_sha256": load.prompts_sha256,
    }
    if performance is not None:
        fields |= _derived_fields(point, performance, served, b200)
    return fields


def _derived_fields(point: Point, performance: Performance, served: Served, b200: B200Table) -> dict[str, Any]:
    fields: dict[str, Any] = {"total_generated_tokens": performance.total_generated_tokens}
    if served.num_gpus is not None:
        fields["tput_per_gpu"] = performance.total_token_throughput / served.num_gpus
    if performance.interactivity is not None:
        fields["interactivity"] = performance.interactivity
    row = b200.row(point)
    if row is not None:
        fields |= compare({**performance.to_fields(), **fields}, row)
        fields["b200_remarks"] = [remark for remark in (row.remark, b200.remark) if remark]
    return fields


def _accuracy_fields(accuracy: AccuracyRecord) -> dict[str, Any]:
    verdict, fields = accuracy.verdict, dict[str, Any]()
    if accuracy.figures is not None:
        fields["accuracy"] = dict(accuracy.figures)
    validation: dict[str, Any] = {"status": str(verdict.status)}
    if verdict.baseline is not None:
        validation["baselines"] = dict(verdict.baseline.figures)
        validation["threshold_multiplier"] = 1 + verdict.tolerance
        validation["baseline_source"] = verdict.baseline.source
    if verdict.reason:
        validation["reason"] = verdict.reason
    fields["accuracy_validation"] = validation
    if accuracy.details is not None:
        fields["accuracy_task"] = dict(accuracy.details)
    return fields


def _load_fields(load: LoadRecord, performance: Performance | None) -> dict[str, Any]:
    run = load.run
    outcomes = {str(outcome): sum(sample.outcome is outcome for sample in run.samples) for outcome in Outcome}
    failed = [
        f"{kind} {sample.index}: {sample.outcome}: {sample.detail}"
        for kind, samples in (("warm-up", run.warmups), ("request", run.samples))
        for sample in samples
        if not sample.ok
    ]
    client: dict[str, Any] = {
        "requests": {
            "sent": len(run.samples),
            "outcomes": {outcome: count for outcome, count in outcomes.items() if count},
            # Enough to see what went wrong; the raw samples have them all.
            "first_failures": failed[:5],
        },
        "reconnects": run.reconnects,
        "cpu_s": run.cpu_s,
        "wall_s": run.wall_s,
        "loop_lag_ms": {
            "p50": run.loop_lag.p50_ms,
            "p99": run.loop_lag.p99_ms,
            "max": run.loop_lag.max_ms,
            "ticks": run.loop_lag.ticks,
        },
        "aborted": run.aborted,
    }
    if (cached := _prefix_cache(load)) is not None:
        client["prefix_cache"] = cached
    if performance is not None:
        client["slots_busy"] = performance.slots_busy
        if performance.slot_idle is not None:
            client["slot_idle_ms"] = {"mean": performance.slot_idle.mean_ms, "max": performance.slot_idle.max_ms}
    fields: dict[str, Any] = {"client": client}
    if load.samples_file is not None:
        fields["samples"] = dict(zip(("file", "sha256"), load.samples_file, strict=True))
    if performance is not None:
        fields["latency_ms"] = performance.latency_ms()
    return fields


def _prefix_cache(load: LoadRecord) -> dict[str, Any] | None:
    """How much of the prompts the server had in its cache; None where it does not tell."""
    told = [sample for sample in load.run.completed if sample.cached_tokens is not None]
    prompt_tokens = sum(sample.requested_input_tokens for sample in told)
    if not prompt_tokens:
        return None
    cached_tokens = sum(sample.cached_tokens or 0 for sample in told)
    return {"requests_told": len(told), "prompt_tokens": prompt_tokens, "cached_tokens": cached_tokens}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
