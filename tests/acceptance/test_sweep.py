"""A sweep on a server that is not ours: what is measured, what is written, what fails it."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from pytest_dsr1.batch.samples import read_samples
from pytest_dsr1.core.samples import Figures, summarize
from pytest_dsr1.servers.pool import lock_server
from tests.project import Project
from tests.servers.timed import timed_server

#: One token for each request. Where there are more, a busy machine may read an answer all at once, which fails the
#: point: tests with several tokens do not assert that it passes.
LENGTHS = ("--isl", "16", "--osl", "1")
SEVERAL_TOKENS = ("--isl", "16", "--osl", "8")
quick_server = partial(timed_server, ttft_s=0.002, interval_s=0.004)
FEW = ("--accuracy", "off", "--num-prompts", "12")
QUICK = (*LENGTHS, *FEW)


def result(project: Project, conc: int) -> dict[str, Any]:
    path = next(project.batch.glob(f"result_*_conc{conc}.json"))
    fields: dict[str, Any] = json.loads(path.read_text())
    return fields


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"\(\d+s\)", "(s)", line) for line in lines]


def test_a_sweep_from_options_to_summary(project: Project) -> None:
    """Two concurrencies, measured by the formula, each with its result, its raw samples and its line."""
    with quick_server() as server:
        outcome = project.run(*LENGTHS, "--accuracy", "off", "--conc", "2,4", "--server-url", server.url, "-v")
        truth = server.truth()
    assert outcome.status == 0, outcome
    assert without_times(project.lines()) == [
        "[1/2] ISL=16 OSL=1 CONC=2: PASSED (s)",
        "[2/2] ISL=16 OSL=1 CONC=4: PASSED (s)",
    ]
    # 100 and 200 measured, 4 and 8 to warm up; never more than CONC at once.
    assert len(truth["requests"]) == 312
    assert truth["in_flight"] == 4
    assert truth["flushes"] == 2
    assert len({(one["first"], one["second"]) for one in truth["requests"]}) == 312
    assert {path.name for path in project.batch.iterdir()} == {
        "summary.txt",
        "batch.json",
        *(f"result_isl16_osl1_conc{conc}.json" for conc in (2, 4)),
        *(f"samples_isl16_osl1_conc{conc}.npz" for conc in (2, 4)),
    }
    assert "ISL 16, OSL 1, CONC 2, 4: performance only (accuracy off)" in outcome.output
    assert "300 requests (and 12 to warm up), 4,800 tokens in, 300 out" in outcome.output


def test_result_has_the_predecessors_fields(project: Project, shared: Path) -> None:
    """Same names, same nesting, but for the baseline that 16/8 does not have and an accuracy that was left out."""
    golden = json.loads((shared / "golden" / "result_isl1024_osl1024_conc16.json").read_text())
    with quick_server(server_info={"tp_size": 2}) as server:
        project.run(*SEVERAL_TOKENS, *FEW, "--conc", "2", "--server-url", server.url)
    fields = result(project, 2)
    absent = golden.keys() - fields.keys()
    assert absent == {"accuracy", *(name for name in golden if "b200" in name)}
    assert golden["benchmark_args"].keys() <= fields["benchmark_args"].keys()
    assert fields["accuracy_validation"] == {"status": "NOT RUN", "reason": "accuracy off"}
    assert fields["tput_per_gpu"] == fields["total_token_throughput"] / 2


def test_statistics_recompute_from_the_raw_samples(project: Project) -> None:
    """What the result says follows from the file beside it."""
    with quick_server() as server:
        project.run(*SEVERAL_TOKENS, *FEW, "--conc", "2", "--server-url", server.url)
    performance = summarize(read_samples(next(project.batch.glob("samples_*.npz"))))
    assert performance is not None
    fields = result(project, 2)
    figures = msgspec.structs.asdict(performance)
    for name in Figures.__struct_fields__:
        assert fields[name] == pytest.approx(figures[name], rel=1e-9), name


def test_b200_ratios(project: Project) -> None:
    """At 1024/1024 the result compares itself with the published row of its concurrency."""
    args = ("--isl", "1024", "--osl", "1024", "--conc", "4", "--num-prompts", "4", "--accuracy", "off")
    with quick_server(server_info={"tp_size": 8}, tokens_per_event=16) as server:
        project.run(*args, "--server-url", server.url)
    fields = result(project, 4)
    assert fields["b200_baseline_nv1126"]["b200_median_e2e_1126"] == 6854
    assert fields["median_e2e_ratio_vs_b200_1126"] == fields["median_e2el_ms"] / 6854


def test_number_of_gpus_nobody_knows(project: Project) -> None:
    """A server that says nothing gives no per-GPU figures; an explicit --tp gives some, marked as assumed."""
    with quick_server() as server:
        assert project.run(*QUICK, "--conc", "2", "--server-url", server.url).status == 0
        unknown = result(project, 2)
        assert project.run(*QUICK, "--conc", "2", "--server-url", server.url, "--tp", "4").status == 0
        assumed = result(project, 2)
    assert "tput_per_gpu" not in unknown
    assert assumed["server"]["num_gpus_source"] == "assumed"
    assert assumed["tput_per_gpu"] == assumed["total_token_throughput"] / 4


@pytest.mark.parametrize(
    ("fault", "outcome_name"),
    [
        ({"status": 500}, "http_status"),
        ({"error_at": 3}, "stream_error"),
        ({"close_at": 3}, "truncated"),
        ({"generated": 7}, "wrong_length"),
        ({"reset_at": 3}, "connection_lost"),
        ({"bad_json_at": 3}, "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_bad_answer_fails_the_point(project: Project, fault: dict[str, int], outcome_name: str) -> None:
    """It enters no statistic; the result keeps the others' figures, says what happened, and the exit status is 1."""
    with quick_server(answers={9: fault}) as server:
        outcome = project.run(*SEVERAL_TOKENS, *FEW, "--conc", "2", "--server-url", server.url)
    assert outcome.status == 1, outcome
    fields = result(project, 2)
    assert fields["successful_requests"] == 11
    assert fields["client"]["requests"]["outcomes"] == {"ok": 11, outcome_name: 1}
    assert re.search(r"CONC=2: FAILED \(\d+s\) h1: .*", project.summary())
    assert "h1: " in outcome.output


def test_impossible_figures_fail_the_point(project: Project) -> None:
    """Whole answers in one read leave no time per token: rejected, with the finding as the reason."""
    with quick_server(events_per_send=8) as server:
        outcome = project.run(*SEVERAL_TOKENS, *FEW, "--conc", "2", "--server-url", server.url)
    assert outcome.status == 1, outcome
    assert "h1: 12 of 12 answers were read at one moment" in project.summary(), outcome


def test_stalled_stream_ends_at_its_deadline(project: Project) -> None:
    """--idle-timeout ends one stuck stream, not the sweep."""
    with quick_server(answers={9: {"stall_at": 0}}) as server:
        outcome = project.run(*QUICK, "--conc", "2,4", "--server-url", server.url, "--idle-timeout", "3")
    assert outcome.status == 1, outcome
    assert without_times(project.lines())[1] == "[2/2] ISL=16 OSL=1 CONC=4: PASSED (s)"
    assert "timed_out" in json.dumps(result(project, 2))


def test_stop_at_first_failure(project: Project) -> None:
    """-x leaves what was not reached as NOT RUN, and the batch as incomplete."""
    with quick_server(answers={5: {"status": 503}}) as server:
        outcome = project.run(*QUICK, "--conc", "2,4", "--server-url", server.url, "-x")
    assert outcome.status == 1, outcome
    assert project.lines()[1] == "[2/2] ISL=16 OSL=1 CONC=4: NOT RUN"
    assert "Multi-Concurrency Test Incomplete!" in project.summary()
    assert f"pytest --resume reports/{project.batch.name}" in outcome.output


def test_several_scenarios_have_a_batch_each(project: Project) -> None:
    """One session, one server, one folder per combination of lengths; no prompt begins like another."""
    with quick_server() as server:
        args = ("--scenario", "16/1,8/1", "--conc", "2", "--num-prompts", "6", "--accuracy", "off")
        outcome = project.run(*args, "--server-url", server.url)
        starts = [(one["first"], one["second"]) for one in server.truth()["requests"]]
    assert outcome.status == 0, outcome
    assert len(project.batches) == 2
    assert len(starts) == len(set(starts)) == 20


def test_selection_makes_the_batch(project: Project) -> None:
    """-k conc4 measures one concurrency, and the batch knows no other."""
    with quick_server() as server:
        outcome = project.run(*QUICK, "--conc", "2,4", "-k", "conc4", "--server-url", server.url)
    assert outcome.status == 0, outcome
    assert without_times(project.lines()) == ["[1/1] ISL=16 OSL=1 CONC=4: PASSED (s)"]


def test_nothing_selected_leaves_nothing(project: Project) -> None:
    """An empty selection is pytest's exit 5, without an empty folder."""
    with quick_server() as server:
        outcome = project.run(*QUICK, "--server-url", server.url, "-k", "conc5")
    assert outcome.status == 5, outcome
    assert not project.batches


def test_reports_of_other_tools(project: Project) -> None:
    """JUnit properties have the headline figures; a pytest-benchmark row has every E2E latency."""
    with quick_server() as server:
        args = (*QUICK, "--conc", "2", "--server-url", server.url)
        assert project.run(*args, "--junitxml", "junit.xml", "--benchmark-json", "rows.json").status == 0
        assert project.run(*args, "--benchmark-disable").status == 0
    properties = {
        one.get("name"): one.get("value") for one in ElementTree.parse(project.folder / "junit.xml").iter("property")
    }
    row = json.loads((project.folder / "rows.json").read_text())["benchmarks"][0]
    assert float(properties["median_e2el_ms"] or 0) == pytest.approx(row["stats"]["median"] * 1000)
    assert row["fullname"] == "tests_bench/test_sweep.py::test_perf[isl16-osl1-conc2]"
    assert row["stats"]["rounds"] == len(row["stats"]["data"]) == 12


def test_in_an_xdist_worker(project: Project) -> None:
    """-n auto is one worker for one server, and the same batch: the controller has server and folder."""
    with quick_server() as server:
        outcome = project.run(*QUICK, "--conc", "2,4", "--server-url", server.url, "-n", "auto")
    assert outcome.status == 0, outcome
    assert "1 worker" in outcome.output
    assert without_times(project.lines()) == [
        "[1/2] ISL=16 OSL=1 CONC=2: PASSED (s)",
        "[2/2] ISL=16 OSL=1 CONC=4: PASSED (s)",
    ]
    assert len(list(project.batch.glob("samples_*.npz"))) == 2


def test_second_session_is_told_who_measures(project: Project) -> None:
    """Two sessions on one server would measure each other."""
    with quick_server() as server:
        with lock_server(server.url, "a nightly job"):
            outcome = project.run(*QUICK, "--server-url", server.url)
        assert outcome.status == 4, outcome
        assert re.search(rf"{server.url} is being measured by process \d+ since .* \(a nightly job\)", outcome.output)
        assert project.run(*QUICK, "--conc", "2", "--server-url", server.url).status == 0


def test_model_is_the_one_that_is_served(project: Project) -> None:
    """MODEL in the environment is a preference; --model is not."""
    project.environment["MODEL"] = "other"
    with quick_server(model="theirs") as server:
        args = (*QUICK, "--conc", "2", "--server-url", server.url)
        assert project.run(*args).status == 0
        assert result(project, 2)["benchmark_args"]["model"] == "theirs"
        outcome = project.run(*args, "--model", "mine")
    assert outcome.status == 4, outcome
    assert f"--model 'mine' is not served at {server.url}, which names: theirs" in outcome.output


def test_vocabulary_that_nobody_knows(project: Project) -> None:
    """It is never probed: a usage error names the options, before anything is measured."""
    project.environment["HF_HUB_OFFLINE"] = "1"
    with quick_server(vocab_size=0) as server:
        args = (*QUICK, "--conc", "2", "--server-url", server.url)
        # The variable is read where the library is imported.
        outcome = project.run_process(*args)
        assert outcome.status == 4, outcome
        assert "vocabulary" in outcome.output
        assert "--vocab-size N" in outcome.output
        assert not project.batches
        assert project.run(*args, "--vocab-size", "500").status == 0


def test_healthy_server_on_the_port_is_used(project: Project) -> None:
    """Without --server-url, a server on --port that names our model is found; the header says so."""
    with quick_server(model="ours") as server:
        outcome = project.run(*QUICK, "--conc", "2", "--port", str(server.port), "--model", "ours")
    assert outcome.status == 0, outcome
    assert f"served by {server.url} (it runs already and serves ours)" in outcome.output


def test_server_that_dies_ends_the_sweep_soon(project: Project) -> None:
    """What was finished stays; no request waits for a server that is gone."""
    with quick_server(dies_at=20) as server:
        outcome = project.run(*QUICK, "--conc", "2,4", "--server-url", server.url)
    assert outcome.status == 1, outcome
    first, second = project.lines()
    assert "PASSED" in first
    assert "FAILED" in second
