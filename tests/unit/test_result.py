"""A result is put together, judged, written and read back."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_dsr1.core.baselines import B200Row, B200Table
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.evidence import Evidence, Finding, Severity, reject, warn
from pytest_dsr1.core.gate import NOT_RUN, AccuracyBaseline, AccuracyFigures, MeasuredTask, judge
from pytest_dsr1.core.record import AccuracyRecord, LoadRecord, make_result
from pytest_dsr1.core.result import Result, SamplesFile
from pytest_dsr1.core.server import Served
from tests.simulated_runs import closed_loop

POINT = Point(Scenario(8, 6), 4)
CONFIG = SweepConfig(scenarios=(POINT.scenario,), concurrencies=(POINT.conc,), num_prompts=40)
SERVED = Served(url="http://127.0.0.1:1", model="model", num_gpus=8, num_gpus_source="server")
ROW = B200Row(
    isl=8, osl=6, conc=4, median_e2e_ms=10407, median_interactivity=83.567, tput_per_gpu=344.564, remark="odd"
)
TABLE = B200Table(name="t", source="t", gpus=8, range_ratio=0.8, remark="all rows", rows=(ROW,))
RUN = closed_loop(concurrency=4, num_prompts=40, length=lambda index: 6)
LOAD = LoadRecord(
    run=RUN,
    vocab_size=1000,
    vocab_source="--vocab-size",
    prompts_sha256="ab",
    samples_file=SamplesFile(file="samples.npz", sha256="cd"),
)
FIGURES = AccuracyFigures(bits_per_byte=0.4485, byte_perplexity=1.3646, word_perplexity=3.2522)
TASK = MeasuredTask(
    task="task",
    documents=1,
    tokens=2,
    words=3,
    bytes=4,
    requests=5,
    concurrency=4,
    seconds=1.5,
    tokenizer="model",
    prefix_token_id=0,
)


def accuracy(figures: AccuracyFigures = FIGURES, *, baseline: bool = True) -> AccuracyRecord:
    """What the gate says of `figures`."""
    published = [AccuracyBaseline("model", "task", FIGURES, "published")] if baseline else []
    verdict = judge(figures, model="model", task="task", published=published)
    return AccuracyRecord(verdict=verdict, figures=figures, task=TASK)


def result(load: LoadRecord | None = LOAD, gate: AccuracyRecord | None = None, **changed: Any) -> Result:
    """The result of the simulated run."""
    arguments = {"performance_due": True, "b200": TABLE, "written": 1234.5, **changed}
    return make_result(POINT, CONFIG, SERVED, gate or accuracy(), load, **arguments)


class TestFile:
    """Schema v1 on disk."""

    def test_its_keys_are_those_of_the_golden_result_in_its_order(self, shared: Path) -> None:
        """The predecessor's names, nesting and order; what this project adds stands between and after."""
        golden = json.loads((shared / "golden" / "result_isl1024_osl1024_conc16.json").read_text())
        fields = json.loads(result().to_json())
        assert [name for name in fields if name in golden] == list(golden)
        for name, value in golden.items():
            if isinstance(value, dict):
                assert [inner for inner in fields[name] if inner in value] == list(value)

    def test_what_is_not_known_is_absent(self) -> None:
        """A number of GPUs that nobody knows leaves out the figures that need it, without a null."""
        unknown = make_result(
            POINT,
            CONFIG,
            Served(url="u", model="m"),
            AccuracyRecord(verdict=NOT_RUN),
            LOAD,
            performance_due=True,
            b200=table_without_this_row(),
            written=0.0,
        )
        fields = json.loads(unknown.to_json())
        assert not {"tput_per_gpu", "b200_baseline_nv1126", "b200_remarks", "accuracy", "accuracy_task"} & fields.keys()
        assert fields["server"]["num_gpus"] is None
        assert "process" not in fields["server"]
        assert fields["accuracy_validation"] == {"status": "NOT RUN", "reason": "accuracy off"}

    def test_figures_of_the_baseline_keep_their_type(self) -> None:
        """10407 is an integer in the published table, and in every result that repeats it."""
        again = Result.from_json(result().to_json())
        assert again.b200_baseline_nv1126 is not None
        assert type(again.b200_baseline_nv1126.b200_median_e2e_1126) is int
        assert '"b200_median_e2e_1126": 10407,' in again.to_json()

    @pytest.mark.parametrize(
        "written",
        [
            result(),
            result(None),
            result(None, performance_due=False),
            result(dataclasses.replace(LOAD, samples_file=None, server_lost="killed", server_changes=("a: 1 -> 2",))),
            result(gate=accuracy(baseline=False)),
        ],
        ids=["passed", "unfinished", "accuracy", "lost", "no baseline"],
    )
    def test_what_is_written_is_read_back(self, written: Result) -> None:
        """To the last digit."""
        assert Result.from_json(written.to_json()) == written
        assert Result.from_fields(json.loads(written.to_json())) == written

    @given(st.floats(), st.integers(0, 2**63), st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_value_is_read_back(self, figure: float, count: int, text: str) -> None:
        """But NaN and infinity, which JSON does not have: they become null."""
        server = replace(result().server, info={"version": text, "random_seed": count})
        written = replace(result(), mean_ttft_ms=figure, successful_requests=count, server=server)
        expected = replace(written, mean_ttft_ms=figure if math.isfinite(figure) else None)
        assert Result.from_json(written.to_json()) == expected

    def test_figures_of_the_gate_that_are_not_finite_are_null(self) -> None:
        """A broken model has such a perplexity; its result fails and stays readable."""
        broken = result(None, accuracy(dataclasses.replace(FIGURES, word_perplexity=math.nan)))
        assert json.loads(broken.to_json())["accuracy"]["word_perplexity"] is None
        again = Result.from_json(broken.to_json())
        assert again.status == "FAILED"
        assert again.accuracy is not None
        assert again.accuracy.word_perplexity is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("[]", "not a result of pytest-dsr1"),
            ('{"successful_requests": 800}', "not a result of pytest-dsr1: it has no schema_version"),
            (result().to_json().replace('"schema_version": 1', '"schema_version": 2'), "schema version 2, .* reads 1"),
            (result().to_json().replace('"seed": 0', '"seed": "0"'), "damaged, benchmark_args, seed: .* found '0'"),
            (result().to_json().replace('"status": "PASSED"', '"status": "GOOD"'), "damaged, .*status: .*'GOOD'"),
            ('{"schema_version": 1}', "damaged: lacks the field accuracy_validation"),
        ],
        ids=lambda value: value[:25],
    )
    def test_another_file_is_refused_by_name(self, text: str, message: str) -> None:
        """The error says what the file is, or which field is wrong."""
        with pytest.raises(ValueError, match=message):
            Result.from_json(text)


def table_without_this_row() -> B200Table:
    """A table without a row for this configuration."""
    return replace(TABLE, rows=(replace(ROW, conc=64),))


class TestAttributes:
    """What a test of one's own reads."""

    def test_latencies_are_distributions_in_ms(self) -> None:
        """Each with mean, percentiles and count; None where nothing was measured."""
        measured = result()
        assert measured.ttft_ms is not None
        assert measured.ttft_ms.p50 == measured.median_ttft_ms == pytest.approx(93)
        assert measured.tpot_ms is not None
        assert measured.tpot_ms.count == 40
        assert measured.itl_ms is not None
        assert measured.itl_ms.count == 200
        assert measured.e2e_ms is not None
        assert measured.e2e_ms.p99 == measured.p99_e2el_ms
        assert (result(None).ttft_ms, result(None).e2e_ms) == (None, None)

    def test_the_point_is_a_value(self) -> None:
        """Known wherever load was sent."""
        assert result().point == POINT
        assert result(None).point is None

    def test_headline_has_what_there_is(self) -> None:
        """By the names of the file, and without nulls."""
        headline = result().headline
        assert headline["median_e2e_ratio_vs_b200_1126"] == headline["median_e2el_ms"] / 10407
        assert result(None).headline == {}

    def test_repr_is_one_line(self) -> None:
        """A failed assertion shows it."""
        assert repr(result()) == (
            "Result(isl8-osl6-conc4 PASSED: 375.5 tokens/s, median TTFT 93.0 ms, median TPOT 11.0 ms, "
            "median E2E 147.5 ms)"
        )
        assert repr(result(None, performance_due=False)) == "Result(PASSED)"
        failed = repr(result(dataclasses.replace(LOAD, server_lost="killed\nby SIGKILL")))
        assert "isl8-osl6-conc4 FAILED: " in failed
        assert failed.count("killed by SIGKILL") == 1


class TestVerdict:
    """When a point has passed."""

    def test_a_true_result_passes(self) -> None:
        """Without a finding, and without a reason."""
        passed = result()
        assert (passed.passed, passed.status, passed.reason, passed.findings) == (True, "PASSED", "", ())

    def test_without_its_performance_it_is_unfinished(self) -> None:
        """Unless performance is not asked for, as in mode acc."""
        assert result(None).status is None
        assert not result(None).passed
        assert result(None, performance_due=False).passed

    def test_a_closed_gate_fails_at_once(self) -> None:
        """Whether performance is due or not."""
        closed = accuracy(dataclasses.replace(FIGURES, word_perplexity=4.0))
        assert result(None, closed).status == "FAILED"
        assert "word_perplexity 4.0" in result(None, closed).reason

    def test_no_baseline_fails_after_performance(self) -> None:
        """The figures are kept; the reason says how to record a baseline."""
        measured = result(gate=accuracy(baseline=False))
        assert measured.status == "FAILED"
        assert measured.total_token_throughput is not None
        assert "--record-accuracy-baseline" in measured.reason

    def test_a_rejecting_finding_is_the_reason(self) -> None:
        """The first one, and how many more there are."""
        lost = result(dataclasses.replace(LOAD, server_lost="killed", server_changes=("a: 1 -> 2",)))
        assert [one.check for one in lost.findings] == ["h11", "h11"]
        assert lost.reason.startswith("h11: ")
        assert lost.reason.endswith("(and 1 more findings)")

    def test_checks_from_outside(self) -> None:
        """A warning is kept, a rejection fails the point."""

        def slow(evidence: Evidence) -> Iterator[Finding]:
            yield warn("slow", f"{evidence.number('mean_ttft_ms'):.0f} ms")

        def too_slow(evidence: Evidence) -> Iterator[Finding]:
            yield reject("too-slow", "indeed")

        warned = result(more_checks=[slow])
        assert warned.passed
        assert [(one.check, one.severity) for one in warned.findings] == [("slow", Severity.WARN)]
        failed = result(more_checks=[slow, too_slow])
        assert (failed.status, failed.reason) == ("FAILED", "too-slow: indeed")
