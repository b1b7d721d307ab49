"""The gate on a real model: what passes, what fails, and what a sweep makes of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import TypeAlias

import pytest

from pytest_dsr1.accuracy import evaluate
from pytest_dsr1.accuracy.documents import task_for
from pytest_dsr1.accuracy.tokenizer import find_tokenizer
from pytest_dsr1.core.gate import (
    AccuracyBaseline,
    AccuracyFigures,
    MeasuredTask,
    Verdict,
    baselines_from_json,
    baselines_to_json,
    judge,
)
from pytest_dsr1.servers.external import inspect
from tests.conftest import ROOT
from tests.engine import running_engine
from tests.project import Outcome, Project
from tools.quantize_reference import quantised_copy

WEIGHTS = ROOT / "pytest_dsr1" / "reference" / "weights"
LENGTHS = ("--isl", "32", "--osl", "1")
Measured: TypeAlias = tuple[AccuracyFigures, MeasuredTask]
#: Three documents are judged as the whole corpus is, in a tenth of the time.
LIMIT = ("--accuracy-limit", "3", "--conc", "4")


def measured(url: str, concurrency: int = 8) -> Measured:
    """Accuracy of the engine at `url` on its whole corpus."""
    served = inspect(url)
    return evaluate(task_for(reference=True), served, find_tokenizer(None, served), concurrency)


@pytest.fixture(scope="module")
def published() -> AccuracyBaseline:
    """The reference engine's baseline."""
    (baseline,) = baselines_from_json(
        (ROOT / "baselines" / "accuracy_reference.json").read_text(), "accuracy_reference.json"
    )
    return baseline


def judged(measurement: Measured, baseline: AccuracyBaseline) -> Verdict:
    figures, measured_on = measurement
    return judge(figures, model=baseline.model, task=measured_on.task, published=[baseline])


class TestModel:
    """Weights good and bad behind the same code."""

    def test_the_baseline_is_one_of_the_packaged_weights(self, published: AccuracyBaseline) -> None:
        """New weights need a new baseline: pytest --isl 128 --osl 128 --mode acc --record-accuracy-baseline FILE."""
        digest = hashlib.sha256((WEIGHTS / "model.safetensors").read_bytes()).hexdigest()
        assert digest in published.source

    @pytest.mark.parametrize("concurrency", [1, 64])
    def test_the_engine_scores_its_baseline(
        self, published: AccuracyBaseline, reference_url: str, concurrency: int
    ) -> None:
        """At every concurrency, far closer than the gate demands: only the order of float32 sums differs."""
        for name, value in measured(reference_url, concurrency)[0]:
            assert value == pytest.approx(dict(published.figures)[name], rel=1e-4)

    def test_int8_per_channel_passes(self, published: AccuracyBaseline, tmp_path: Path) -> None:
        """Careful rounding costs less than 0.3 % on every figure."""
        measurement = self.quantised("int8", tmp_path)
        assert judged(measurement, published).passed
        for name, value in measurement[0]:
            assert value == pytest.approx(dict(published.figures)[name], rel=0.003)

    def test_int4_with_one_scale_fails(self, published: AccuracyBaseline, tmp_path: Path) -> None:
        """A ruined model is refused, by the figure that shows it most."""
        verdict = judged(self.quantised("int4", tmp_path), published)
        assert not verdict.opens
        assert verdict.reason.startswith("accuracy gate: word_perplexity ")

    @staticmethod
    def quantised(scheme: str, folder: Path) -> Measured:
        with running_engine(folder, quantised_copy(WEIGHTS, folder / scheme, scheme)) as served:
            return measured(served.url)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, reference_url: str) -> tuple[Project, Outcome]:
    """A sweep of a task that has no baseline, which records one; performance included."""
    project = Project(tmp_path_factory.mktemp("recorded"))
    outcome = project.run(
        *LENGTHS, *LIMIT, "--num-prompts", "12", "--server-url", reference_url,
        "--record-accuracy-baseline", "mine.json",
    )  # fmt: skip
    return project, outcome


class TestSweep:
    """What a user sees."""

    def test_without_a_baseline_everything_is_measured_and_the_point_fails(
        self, recorded: tuple[Project, Outcome]
    ) -> None:
        """Never a silent pass: figures of both kinds are kept, and the summary says what to type."""
        project, outcome = recorded
        assert outcome.status == 1
        (line,) = project.lines()
        assert "FAILED" in line
        assert "no accuracy baseline for (pytest-dsr1-reference, dsr1-heldout[:3])" in line
        assert "--record-accuracy-baseline" in line
        fields = json.loads((project.batch / "result_isl32_osl1_conc4.json").read_text())
        assert fields["accuracy"]["word_perplexity"] > 1
        assert fields["successful_requests"] == 12

    def test_a_recorded_baseline_holds_what_was_measured(self, recorded: tuple[Project, Outcome]) -> None:
        """To the last digit, keyed by model and task."""
        project, _ = recorded
        (baseline,) = baselines_from_json((project.folder / "mine.json").read_text(), "mine.json")
        fields = json.loads((project.batch / "result_isl32_osl1_conc4.json").read_text())
        assert dict(baseline.figures) == fields["accuracy"]
        assert (baseline.model, baseline.task) == ("pytest-dsr1-reference", "dsr1-heldout[:3]")

    @pytest.mark.parametrize(("percent", "status"), [(-3.1, 1), (-2.9, 0), (2.9, 0), (3.1, 1)])
    def test_a_baseline_altered_by_3_1_percent_fails_the_sweep_and_by_2_9_does_not(
        self, recorded: tuple[Project, Outcome], project: Project, reference_url: str, percent: float, status: int
    ) -> None:
        """Both sides, with the exit status to match; a failed gate is named in the summary with its bound."""
        (baseline,) = baselines_from_json((recorded[0].folder / "mine.json").read_text(), "mine.json")
        figures = AccuracyFigures(**{name: value * (1 + percent / 100) for name, value in baseline.figures})
        (project.folder / "altered.json").write_text(
            baselines_to_json([dataclasses.replace(baseline, figures=figures)])
        )
        outcome = project.run(
            *LENGTHS, *LIMIT, "--mode", "acc", "--server-url", reference_url, "--accuracy-baseline", "altered.json"
        )
        assert outcome.status == status, outcome
        (line,) = project.lines()
        assert ("accuracy gate: " in line) is bool(status)
        assert ("better by more than 3 %" in line) is (percent > 3)


def test_published_figures_are_on_the_scale_of_the_task(shared: Path) -> None:
    """ln word_ppl / ln byte_ppl is bytes per word: of the seed's chunks 3.794, where lm-eval's own task has 5.347."""
    (baseline,) = baselines_from_json(
        (ROOT / "baselines" / "accuracy_deepseek.json").read_text(), "accuracy_deepseek.json"
    )
    task = task_for(reference=False, data=shared / "data" / "wikitext2_raw_test_rows.jsonl")
    assert baseline.task == task.name
    scale = math.log(baseline.figures.word_perplexity) / math.log(baseline.figures.byte_perplexity)
    assert scale == pytest.approx(task.bytes / task.words, rel=1e-3)
    assert baseline.figures.bits_per_byte == pytest.approx(math.log2(baseline.figures.byte_perplexity), rel=1e-3)
