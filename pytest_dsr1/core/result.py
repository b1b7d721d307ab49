"""The result of one point: its schema as types, to and from JSON.

The flat fields, `benchmark_args`, `b200_baseline_nv1126`, `accuracy` and `accuracy_validation` have the names and units
of the predecessor's result file; the other objects are this project's. The order of the fields is that of the file. A
field with the default None is absent from a file where there is no value; a field without a default is always written,
even if it is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from pytest_dsr1.core.baselines import B200Baseline
from pytest_dsr1.core.config import Point, Scenario
from pytest_dsr1.core.evidence import Finding
from pytest_dsr1.core.gate import Accuracy, MeasuredTask, Verdict
from pytest_dsr1.core.samples import Distribution, Figures, LatencyMs, LoopLag, SlotIdle
from pytest_dsr1.core.text import convert, parse_json, shown

# Format history:
# 1 - the fields of the predecessor, and: schema_version, engine, written, verdict, accuracy_task, server, client,
#     latency_ms, validation
SCHEMA_VERSION = 1


class _Object(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An object of a result file."""


class BenchmarkArgs(_Object, frozen=True, kw_only=True):
    """How the load was made.

    :param num_prompts_source: `formula` or `option`.
    :param vocab_source: Where `vocab_size` is from; prompts are random ids below that size.
    :param prompts_sha256: Of the ids and lengths of all prompts of the point.
    """

    model: str
    backend: str
    base_url: str
    dataset_name: str
    random_input_len: int
    random_output_len: int
    random_range_ratio: float
    num_prompts: int
    num_prompts_source: str
    max_concurrency: int
    request_rate: str
    num_warmups: int
    seed: int
    vocab_size: int
    vocab_source: str
    prompts_sha256: str


class MeasuredServer(_Object, frozen=True, kw_only=True):
    """The server that was measured; see `core.server.Served`.

    :param changes: What differed after the point: model, arguments, process. Absent where no load was sent, like
        `lost`.
    :param lost: Why the server ended during the point, in one line; empty if it did not.
    """

    url: str
    engine: str
    model: str
    num_gpus: int | None
    num_gpus_source: str
    info: dict[str, Any]
    concurrent_servers: int
    process: dict[str, Any] | None = None
    launch: dict[str, Any] | None = None
    changes: tuple[str, ...] | None = None
    lost: str | None = None


class RequestCounts(_Object, frozen=True, kw_only=True):
    """How many requests ended in which way, and the first failures in words."""

    sent: int
    outcomes: dict[str, int]
    first_failures: tuple[str, ...]


class PrefixCache(_Object, frozen=True, kw_only=True):
    """Prompt tokens, and how many of them were in the server's cache.

    :param requests_told: Requests for which the server reported it; only they are counted.
    """

    requests_told: int
    prompt_tokens: int
    cached_tokens: int


class Client(_Object, frozen=True, kw_only=True):
    """What the load generator says of itself.

    :param aborted: Why the run was given up early; empty if it was not.
    :param prefix_cache: None where the server does not report cached tokens.
    :param slots_busy: The part of slot time that completed requests took; 1 if no slot ever waited.
    """

    requests: RequestCounts
    reconnects: int
    cpu_s: float
    wall_s: float
    loop_lag_ms: LoopLag
    aborted: str
    prefix_cache: PrefixCache | None = None
    slots_busy: float | None = None
    slot_idle_ms: SlotIdle | None = None


class SamplesFile(_Object, frozen=True, kw_only=True):
    """The file of the raw samples, beside the result."""

    file: str
    sha256: str


class Validation(_Object, frozen=True, kw_only=True):
    """What the checks found."""

    findings: tuple[Finding, ...]


class PointVerdict(_Object, frozen=True, kw_only=True):
    """Whether the point passed; UNFINISHED while a part of it is still to be measured."""

    status: Literal["PASSED", "FAILED", "UNFINISHED"]
    reason: str


class Result(Figures, frozen=True, kw_only=True):
    """A result file. It begins with the flat figures."""

    benchmark_args: BenchmarkArgs | None = None
    total_generated_tokens: int | None = None
    tput_per_gpu: float | None = None
    interactivity: float | None = None
    b200_baseline_nv1126: B200Baseline | None = None
    tput_per_gpu_ratio_vs_b200_1126: float | None = None
    median_e2e_ratio_vs_b200_1126: float | None = None
    interactivity_ratio_vs_b200_1126: float | None = None
    b200_remarks: tuple[str, ...] | None = None
    accuracy: Accuracy | None = None
    accuracy_validation: Verdict
    accuracy_task: MeasuredTask | None = None
    schema_version: int
    engine: str
    written: float
    """Epoch seconds."""
    server: MeasuredServer
    client: Client | None = None
    samples: SamplesFile | None = None
    latency_ms: LatencyMs | None = None
    extra: dict[str, Any] | None = None
    """What plugins have added by `pytest_dsr1_load_ended`."""
    validation: Validation
    verdict: PointVerdict

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Parse a result file.

        :raises ValueError: Not JSON, of another tool or schema version, or with a wrong field; the message says which.
        """
        return cls.from_fields(parse_json(text, "the result"))

    @classmethod
    def from_fields(cls, fields: object) -> Result:
        """The same, from the parsed JSON."""
        if not isinstance(fields, Mapping) or "schema_version" not in fields:
            raise ValueError("not a result of pytest-dsr1: it has no schema_version")
        if (version := fields["schema_version"]) != SCHEMA_VERSION:
            raise ValueError(f"the result has schema version {shown(version)}, this version reads {SCHEMA_VERSION}")
        return convert(fields, cls, "the result is damaged")

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON object of the file, without the fields that are absent."""
        builtins: dict[str, Any] = msgspec.to_builtins(self)
        return builtins

    def to_json(self) -> str:
        """Indented JSON; NaN and infinity, which JSON does not have, become null."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"

    @property
    def point(self) -> Point | None:
        """The configuration; None where no load was sent, as in mode acc."""
        args = self.benchmark_args
        if args is None:
            return None
        return Point(Scenario(args.random_input_len, args.random_output_len), args.max_concurrency)

    @property
    def status(self) -> Literal["PASSED", "FAILED"] | None:
        """None while a part of the point is still to be measured."""
        return None if self.verdict.status == "UNFINISHED" else self.verdict.status

    @property
    def passed(self) -> bool:
        return self.status == "PASSED"

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line."""
        return self.verdict.reason

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the checks found; those of severity `reject` fail the point."""
        return self.validation.findings

    @property
    def ttft_ms(self) -> Distribution | None:
        """Time to first token; None where nothing was measured, like the three below."""
        return self.latency_ms.ttft if self.latency_ms else None

    @property
    def tpot_ms(self) -> Distribution | None:
        """Time per output token; None too if each request generated one token."""
        return self.latency_ms.tpot if self.latency_ms else None

    @property
    def itl_ms(self) -> Distribution | None:
        """Inter-token latency, over all gaps; None too if no request had two events."""
        return self.latency_ms.itl if self.latency_ms else None

    @property
    def e2e_ms(self) -> Distribution | None:
        """End-to-end latency of a request."""
        return self.latency_ms.e2el if self.latency_ms else None

    @property
    def headline(self) -> dict[str, float]:
        """The figures that a report shows first, by name; absent ones are left out."""
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
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        """One line, since a failed assertion shows it."""
        figures = [] if self.total_token_throughput is None else [f"{self.total_token_throughput:,.1f} tokens/s"]
        medians = (("TTFT", self.ttft_ms), ("TPOT", self.tpot_ms), ("E2E", self.e2e_ms))
        figures += [f"median {name} {latency.p50:,.1f} ms" for name, latency in medians if latency is not None]
        status = self.verdict.status if self.point is None else f"{self.point.id} {self.verdict.status}"
        return (
            f"Result({status}{': ' if figures else ''}{', '.join(figures)}{'; ' if self.reason else ''}{self.reason})"
        )
