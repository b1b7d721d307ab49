"""What a closed gate, or none, does to a sweep: on the embedded engine and on a stranger's server."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_dsr1.batch.published import published_baselines
from pytest_dsr1.core.gate import AccuracyFigures, baselines_to_json
from tests.project import Project
from tests.servers.timed import timed_server

POINT = ("--isl", "16", "--osl", "1", "--conc", "4", "--num-prompts", "8")


def write_baseline(path: Path, percent: float) -> None:
    """The embedded engine's own baseline with every figure `percent` % higher."""
    own = next(one for one in published_baselines() if one.task == "dsr1-heldout")
    scaled = {name: value * (1 + percent / 100) for name, value in own.figures}
    path.write_text(baselines_to_json([replace(own, figures=AccuracyFigures(**scaled))]))


def test_closed_gate_skips_performance(project: Project, reference_url: str) -> None:
    """Nothing is measured, the point is FAILED with the gate's reason, and --lf takes both tests up again."""
    write_baseline(project.folder / "own.json", -10)
    args = (*POINT, "--server-url", reference_url, "--accuracy-baseline", "own.json")
    outcome = project.run(*args)
    assert outcome.status == 1, outcome
    assert "1 failed, 1 skipped" in outcome.output
    assert "FAILED" in project.lines()[0]
    assert "accuracy gate: " in project.lines()[0]
    result = json.loads(next(project.batch.glob("result_*.json")).read_text())
    assert result["accuracy_validation"]["status"] == "FAILED"
    assert "total_token_throughput" not in result

    write_baseline(project.folder / "own.json", 0)
    again = project.run(*args, "--lf")
    assert again.status == 0, again
    assert "2 passed" in again.output


def test_performance_alone_evaluates_accuracy_first(project: Project, reference_url: str) -> None:
    """Asked for by itself, the performance test still stands behind the gate, and a skip is no success."""
    args = (*POINT, "-k", "perf", "--server-url", reference_url)
    passed = project.run(*args)
    assert passed.status == 0, passed
    assert json.loads(next(project.batch.glob("result_*.json")).read_text())["accuracy"]
    write_baseline(project.folder / "own.json", -10)
    gated = project.run(*args, "--accuracy-baseline", "own.json")
    assert gated.status == 1, gated
    assert "FAILED" in project.lines()[0]


#: A server that is not ours: it tokenises bytes, and scores every token alike.
strangers_server = partial(timed_server, ttft_s=0.002, interval_s=0.004, server_info={"bos_token_id": 256})


@pytest.fixture
def wikitext(shared: Path) -> tuple[str, ...]:
    """Two documents of WikiText: enough to go all the way."""
    # With "=", since the file lies in another folder: see the message about the rootdir.
    return (f"--accuracy-data={shared / 'data' / 'wikitext2_raw_test_rows.jsonl'}", "--accuracy-limit", "2")


def test_stranger_without_a_baseline(project: Project, wikitext: tuple[str, ...]) -> None:
    """Accuracy and performance are measured and kept, and the point fails for want of a baseline."""
    with strangers_server() as server:
        outcome = project.run(*POINT, *wikitext, "--server-url", server.url)
    assert outcome.status == 1, outcome
    assert "no accuracy baseline for (scripted, wikitext-2047-chunks[:2])" in project.lines()[0]
    result = json.loads(next(project.batch.glob("result_*.json")).read_text())
    assert result["accuracy_validation"]["status"] == "NO BASELINE"
    assert result["accuracy"]["word_perplexity"] > 1
    assert result["successful_requests"] == 8


def test_stranger_with_a_recorded_baseline(project: Project, wikitext: tuple[str, ...]) -> None:
    """What --record-accuracy-baseline writes, --accuracy-baseline reads; then the point passes."""
    with strangers_server() as server:
        args = (*POINT, *wikitext, "--server-url", server.url)
        project.run(*args, "--mode", "acc", "--record-accuracy-baseline", "mine.json")
        outcome = project.run(*args, "--accuracy-baseline", "mine.json")
    assert outcome.status == 0, outcome
    assert "PASSED" in project.lines()[0]


def test_broken_logprobs_close_the_gate(project: Project, wikitext: tuple[str, ...]) -> None:
    """They are an error that says what came back, never a perplexity."""
    with strangers_server(echo_fault="count") as server:
        outcome = project.run(*POINT, *wikitext, "--server-url", server.url)
    assert outcome.status == 1, outcome
    assert "accuracy: " in project.lines()[0]
    assert "accuracy" not in json.loads(next(project.batch.glob("result_*.json")).read_text())
