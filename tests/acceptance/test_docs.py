"""The examples of the documents, run as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.conftest import ROOT
from tests.project import Project
from tests.servers.timed import timed_server

PAGE = (ROOT / "docs" / "own_tests.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Example:
    """A block of Python with the file name in its first line."""

    name: str
    text: str


def examples(heading: str) -> list[Example]:
    """The blocks of one section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(# (\S+)\n.*?)```", section, re.DOTALL)
    assert blocks, heading
    return [Example(name, text) for text, name in blocks]


def command(heading: str, url: str) -> list[str]:
    """What the section says is to be typed, with the address of a server that runs."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (typed,) = re.findall(r"```\npytest (.*)\n```", section)
    return [word.replace("http://127.0.0.1:8000", url) for word in typed.split()]


@pytest.mark.parametrize(("heading", "passed"), [("A test of one point", 1), ("A test of every point", 4)])
def test_own_tests(project: Project, heading: str, passed: int) -> None:
    """The file of the example, run by the command of the example, passes."""
    (example,) = examples(heading)
    (project.folder / example.name).write_text(example.text)
    with timed_server(ttft_s=0.002, interval_s=0.004) as server:
        outcome = project.run(*command(heading, server.url), "-v", "--num-prompts=8")
    assert outcome.status == 0, outcome
    assert f"{passed} passed" in outcome.output


@pytest.mark.parametrize("which", [0, 1], ids=["fixture", "hook"])
def test_own_server(project: Project, which: int) -> None:
    """The sweep measures the server that a conftest brings."""
    example = examples("A server of your own")[which]
    with timed_server(ttft_s=0.002, interval_s=0.004) as server:
        text = example.text.replace("http://127.0.0.1:8000", server.url).replace("timed-model", server.model)
        (project.folder / example.name).write_text(text)
        outcome = project.run("--isl=16", "--osl=8", "--conc=2", "--num-prompts=8", "--accuracy=off")
        assert len(server.truth()["requests"]) == 12
    assert outcome.status == 0, outcome


def test_own_rules(project: Project) -> None:
    """A check of the user's own is used, and he is told of the point."""
    (example,) = examples("Rules of your own")
    (project.folder / example.name).write_text(example.text.replace("> 4000", "> 0.001"))
    with timed_server(ttft_s=0.002, interval_s=0.004) as server:
        outcome = project.run(
            "--isl=16", "--osl=8", "--conc=2", "--num-prompts=8", "--accuracy=off", f"--server-url={server.url}", "-s"
        )
    assert outcome.status == 1, outcome
    assert "slo: median TTFT" in project.summary()
    assert "isl16-osl8-conc2: FAILED" in outcome.output
