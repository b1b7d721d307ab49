"""The same server before and after a point, and its model, not its cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.project import Project
from tests.servers.timed import timed_server

SWEEP = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "20", "--conc", "1,2")


def results(project: Project) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(project.batch.glob("result_*.json"))]


def test_settings_changed_while_it_was_measured(project: Project) -> None:
    """That point fails and says what changed; the summary says it of the next."""
    with timed_server(server_info={"version": "1"}, later_info=(10, {"version": "2"})) as server:
        outcome = project.run(*SWEEP, "--server-url", server.url)
    assert outcome.status == 1, outcome
    first, second = project.lines()
    assert "h11: " in first
    assert first.endswith("version: 1 -> 2")
    assert "PASSED" in second
    assert [result["server"]["changes"] for result in results(project)] == [["version: 1 -> 2"], []]
    assert "CONC 2: the server changed since the point before: version: 1 -> 2" in project.summary()


def test_prompts_that_a_cache_had(project: Project) -> None:
    """More than 1 % of their tokens: a warning everywhere; the figures stay."""
    with timed_server(cached_tokens=15) as server:
        outcome = project.run(*SWEEP, "--server-url", server.url)
    assert outcome.status == 0, outcome
    assert results(project)[0]["client"]["prefix_cache"] == {
        "requests_told": 20,
        "prompt_tokens": 320,
        "cached_tokens": 300,
    }
    warning = "CONC 1: warning s3: 93.8% of the prompts' tokens came from the server's prefix cache (300 of 320)"
    assert warning in project.summary()
    assert warning in outcome.output


@pytest.mark.parametrize(("option", "flushes"), [((), 2), (("--no-flush-cache",), 0)])
def test_its_cache_is_emptied_before_each_measurement(project: Project, option: tuple[str, ...], flushes: int) -> None:
    """Unless its owner does not want that."""
    with timed_server() as server:
        outcome = project.run(*SWEEP, "--server-url", server.url, *option)
        assert outcome.status == 0, outcome
        assert server.truth()["flushes"] == flushes


def test_a_call_that_fails_for_a_moment(project: Project) -> None:
    """A server that once answers HTTP 500 to what it is, has not changed."""
    with timed_server(server_info={"version": "1"}, info_failures=2) as server:
        outcome = project.run(*SWEEP, "--server-url", server.url)
    assert outcome.status == 0, outcome
    assert {result["server"]["info"]["version"] for result in results(project)} == {"1"}
