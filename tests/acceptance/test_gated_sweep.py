"""What a closed gate, or none, does to a sweep: with the embedded engine's task and with a stranger's server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.project import Project
from tests.scoring import scoring_server, with_baseline
from tests.servers.timed import timed_server

POINT = ("--isl", "16", "--osl", "1", "--conc", "4", "--num-prompts", "8")


def test_closed_gate_skips_performance(project: Project) -> None:
    """Nothing is measured, the point is FAILED with the gate's reason, and --lf takes both tests up again."""
    with scoring_server(engine="pytest-dsr1-reference") as server:
        args = (*POINT, "--server-url", server.url)
        outcome = project.run(*args, *with_baseline(project, percent=-10))
        assert outcome.status == 1, outcome
        assert "1 failed, 1 skipped" in outcome.output
        assert "FAILED" in project.lines()[0]
        assert "accuracy gate: " in project.lines()[0]
        result = json.loads(next(project.batch.glob("result_*.json")).read_text())
        assert result["accuracy_validation"]["status"] == "FAILED"
        assert "total_token_throughput" not in result
        assert server.truth()["requests"] == []

        again = project.run(*args, *with_baseline(project), "--lf")
    assert again.status == 0, again
    assert "2 passed" in again.output


def test_performance_alone_evaluates_accuracy_first(project: Project) -> None:
    """Asked for by itself, the performance test still stands behind the gate, and a skip is no success."""
    with scoring_server(engine="pytest-dsr1-reference") as server:
        args = (*POINT, "-k", "perf", "--server-url", server.url)
        passed = project.run(*args, *with_baseline(project))
        assert passed.status == 0, passed
        assert json.loads(next(project.batch.glob("result_*.json")).read_text())["accuracy"]
        gated = project.run(*args, *with_baseline(project, percent=-10))
    assert gated.status == 1, gated
    assert "FAILED" in project.lines()[0]


@pytest.fixture
def wikitext(shared: Path) -> tuple[str, ...]:
    """Two documents of WikiText: enough to go all the way."""
    # With "=", since the file lies in another folder: see the message about the rootdir.
    return (f"--accuracy-data={shared / 'data' / 'wikitext2_raw_test_rows.jsonl'}", "--accuracy-limit", "2")


def test_stranger_without_a_baseline(project: Project, wikitext: tuple[str, ...]) -> None:
    """Accuracy and performance are measured and kept, and the point fails for want of a baseline."""
    with scoring_server() as server:
        outcome = project.run(*POINT, *wikitext, "--server-url", server.url)
    assert outcome.status == 1, outcome
    assert "no accuracy baseline for (scripted, wikitext-2047-chunks[:2])" in project.lines()[0]
    result = json.loads(next(project.batch.glob("result_*.json")).read_text())
    assert result["accuracy_validation"]["status"] == "NO BASELINE"
    assert result["accuracy"]["word_perplexity"] > 1
    assert result["successful_requests"] == 8


def test_stranger_with_a_recorded_baseline(project: Project, wikitext: tuple[str, ...]) -> None:
    """What --record-accuracy-baseline writes, --accuracy-baseline reads; then the point passes."""
    with scoring_server() as server:
        args = (*POINT, *wikitext, "--server-url", server.url)
        project.run(*args, "--mode", "acc", "--record-accuracy-baseline", "mine.json")
        outcome = project.run(*args, "--accuracy-baseline", "mine.json")
    assert outcome.status == 0, outcome
    assert "PASSED" in project.lines()[0]


def test_broken_logprobs_close_the_gate(project: Project, wikitext: tuple[str, ...]) -> None:
    """They are an error that says what came back, never a perplexity."""
    with timed_server(ttft_s=0.002, server_info={"bos_token_id": 256}, echo_fault="count") as server:
        outcome = project.run(*POINT, *wikitext, "--server-url", server.url)
    assert outcome.status == 1, outcome
    assert "accuracy: " in project.lines()[0]
    assert "accuracy" not in json.loads(next(project.batch.glob("result_*.json")).read_text())
