"""The accuracy gate and its baselines."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.gate import (
    AccuracyBaseline,
    AccuracyFigures,
    GateStatus,
    Verdict,
    baselines_from_json,
    baselines_to_json,
    judge,
)

MODEL = "amd/DeepSeek-R1-0528-MXFP4-Preview"
TASK = "wikitext-2047-chunks"
FIGURES = AccuracyFigures(bits_per_byte=0.4485, byte_perplexity=1.3646, word_perplexity=3.2522)
BASELINE = AccuracyBaseline(MODEL, TASK, FIGURES, "published")

positive = st.floats(min_value=1e-6, max_value=1e6)
texts = st.text(min_size=1)
baselines = st.builds(
    AccuracyBaseline,
    model=texts,
    task=texts,
    figures=st.builds(AccuracyFigures, positive, positive, positive),
    source=texts,
)


def judged(figures: AccuracyFigures, baseline: AccuracyBaseline | None = BASELINE) -> Verdict:
    return judge(figures, model=MODEL, task=TASK, published=[] if baseline is None else [baseline])


def scaled(by: float, *names: str) -> AccuracyFigures:
    """FIGURES with the named ones multiplied; all of them if none is named."""
    return AccuracyFigures(**{name: value * by if not names or name in names else value for name, value in FIGURES})


def test_the_baselines_own_figures_pass() -> None:
    """A model that scores its baseline passes, with nothing to say."""
    assert judged(FIGURES) == Verdict(
        status=GateStatus.PASSED, baselines=FIGURES, threshold_multiplier=1.03, baseline_source="published"
    )


@pytest.mark.parametrize("name", [name for name, _ in FIGURES])
@pytest.mark.parametrize(("percent", "passes"), [(3.1, False), (2.9, True), (-2.9, True), (-3.1, False)])
def test_a_baseline_altered_by_3_1_percent_fails_and_by_2_9_passes(name: str, percent: float, passes: bool) -> None:
    """Any one figure decides, whichever way its baseline is off."""
    altered = dataclasses.replace(BASELINE, figures=scaled(1 + percent / 100, name))
    verdict = judged(FIGURES, altered)
    assert verdict.passed is passes
    assert verdict.opens is passes
    assert (name in verdict.reason) is not passes


@pytest.mark.parametrize("name", [name for name, _ in FIGURES])
def test_the_bounds_themselves_pass(name: str) -> None:
    """±3 % is inclusive: 1.03 and 0.97 times the baseline."""
    assert judged(scaled(1.03, name)).passed
    assert judged(scaled(0.97, name)).passed


def test_a_worse_figure_is_named_with_its_upper_bound() -> None:
    """The reason is the line that stands in summary.txt."""
    verdict = judged(AccuracyFigures(0.4515, 1.3675, 3.4012))
    assert verdict.status is GateStatus.FAILED
    assert verdict.reason == "accuracy gate: word_perplexity 3.4012 > 3.3498"


def test_a_better_figure_is_named_with_its_lower_bound_and_what_it_means() -> None:
    """Too good is a wrong measurement, and the reason says so."""
    assert judged(AccuracyFigures(0.4485, 1.3646, 3.1)).reason == (
        "accuracy gate: word_perplexity 3.1000 < 3.1546: better by more than 3 % means a wrong measurement"
    )


def test_the_binding_figure_is_the_one_furthest_outside() -> None:
    """Of several broken bounds the reason names the one that is broken most."""
    assert "bits_per_byte" in judged(AccuracyFigures(0.4485 * 1.2, 1.3646 * 1.05, 3.2522 * 1.1)).reason
    assert "byte_perplexity" in judged(AccuracyFigures(0.4485 * 1.04, 1.3646 * 0.9, 3.2522)).reason


def test_a_reason_has_the_digits_that_make_it_true() -> None:
    """A figure a hair over its bound is not printed as equal to it."""
    bound = FIGURES.word_perplexity * 1.03
    assert judged(AccuracyFigures(0.4485, 1.3646, bound + 3e-7)).reason == (
        "accuracy gate: word_perplexity 3.3497663 > 3.3497660"
    )


@pytest.mark.parametrize("baseline", [BASELINE, None])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_never_pass(value: float, baseline: AccuracyBaseline | None) -> None:
    """NaN fails with and without a baseline, though no comparison with it is true."""
    verdict = judged(AccuracyFigures(0.4485, value, 3.2522), baseline)
    assert verdict.status is GateStatus.FAILED
    assert f"byte_perplexity is {value}" in verdict.reason


def test_without_a_baseline_the_gate_opens_but_does_not_pass() -> None:
    """The reason names model, task and the option that records a baseline."""
    verdict = judged(FIGURES, None)
    assert verdict.status is GateStatus.NO_BASELINE
    assert verdict.opens
    assert not verdict.passed
    assert verdict.reason.startswith(f"no accuracy baseline for ({MODEL}, {TASK})")
    assert "--record-accuracy-baseline" in verdict.reason


@given(st.tuples(positive, positive, positive), st.tuples(positive, positive, positive))
def test_a_verdict_passes_exactly_when_every_figure_is_within_3_percent(
    measured: tuple[float, float, float], expected: tuple[float, float, float]
) -> None:
    """No combination of figures slips through."""
    figures, baseline = AccuracyFigures(*measured), dataclasses.replace(BASELINE, figures=AccuracyFigures(*expected))
    inside = all(0.97 * want <= got <= 1.03 * want for got, want in zip(measured, expected, strict=True))
    assert judged(figures, baseline).passed is inside


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_baseline_is_finite_and_positive(value: float) -> None:
    """What a broken server scored cannot be recorded as a baseline."""
    with pytest.raises(ValueError, match=r"word_perplexity .* needs a finite number above 0"):
        dataclasses.replace(BASELINE, figures=AccuracyFigures(0.4, 1.3, value))


@given(st.lists(baselines, max_size=4, unique_by=lambda one: (one.model, one.task)))
def test_baselines_survive_their_file_to_the_last_digit(written: list[AccuracyBaseline]) -> None:
    """What is written is read back."""
    assert baselines_from_json(baselines_to_json(written), "file") == tuple(written)


def with_entry(**changes: object) -> str:
    data = json.loads(baselines_to_json([BASELINE]))
    data["baselines"][0].update(changes)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "mine.json: not JSON"),
        ("[" * 100_000, "mine.json: not JSON"),
        ("[]", "mine.json .* expected schema 'pytest-dsr1/accuracy-baselines', found a list"),
        ('{"schema": "other"}', "expected schema 'pytest-dsr1/accuracy-baselines', found 'other'"),
        (baselines_to_json([]).replace('"version": 1', '"version": 2'), "mine.json has version 2 .* reads 1"),
        ('{"schema": "pytest-dsr1/accuracy-baselines", "version": 1}', "mine.json: lacks the field baselines"),
        (with_entry(figures=None), "mine.json, baseline 1, figures: expected object, found null"),
        (with_entry(model=""), "mine.json, baseline 1, model: .* length >= 1, found ''"),
        (
            with_entry(figures={**dict(FIGURES), "word_perplexity": "3"}),
            "mine.json, baseline 1, figures, word_perplexity: expected float, found '3'",
        ),
        (with_entry(figures={**dict(FIGURES), "bits_per_byte": True}), "bits_per_byte: expected float, found true"),
        (with_entry(figures={**dict(FIGURES), "bits_per_byte": -1}), "mine.json, baseline 1: bits_per_byte .* is -1"),
        (
            baselines_to_json([BASELINE, dataclasses.replace(BASELINE, task="x")]).replace('"x"', f'"{TASK}"'),
            "mine.json has two baselines for",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(text: str, complaint: str) -> None:
    """The error says which file, which entry and which field."""
    with pytest.raises(ValueError, match=complaint):
        baselines_from_json(text, "mine.json")


@given(st.text() | st.dictionaries(st.text(), st.integers() | st.text()).map(json.dumps))
def test_whatever_is_no_baseline_file_is_a_value_error(text: str) -> None:
    """No text makes the reader fall over in another way."""
    with pytest.raises(ValueError, match="file"):
        baselines_from_json(text, "file")


def test_recording_replaces_only_the_same_model_and_task() -> None:
    """A file collects baselines of several models."""
    other = dataclasses.replace(BASELINE, model="other")
    again = dataclasses.replace(BASELINE, figures=scaled(1.01))
    assert baselines_from_json(baselines_to_json([BASELINE, other, again]), "file") == (again, other)


def source(task: str = TASK, model: str = MODEL, **baselines: Any) -> str | None:
    """Where the baseline that is compared with comes from."""
    return judge(FIGURES, model=model, task=task, **baselines).baseline_source


def test_a_given_baseline_comes_before_a_published_one_except_in_submit_mode() -> None:
    """What is submitted is judged by what is published."""
    mine = dataclasses.replace(BASELINE, source="mine")
    assert source(published=[BASELINE], given=[mine]) == "mine"
    assert source(published=[BASELINE], given=[mine], submit=True) == "published"
    assert source(published=[], given=[mine], submit=True) == "mine"


def test_a_baseline_holds_for_its_model_and_its_task_only() -> None:
    """The first N documents, say, are another task."""
    assert source(f"{TASK}[:5]", published=[BASELINE]) is None
    assert source(model="other", published=[BASELINE]) is None
