"""A real SGLang 0.5.23 on the CPU: its start, its figures, its end.

Needs an installation of SGLang for the CPU and its two tiny models, in the folder that DSR1_TEST_SGLANG names; what
`shared/tools/sglang_cpu/setup.sh` makes. `docs/measured/cpu-sglang.md` shows what a user sees of these.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.servers.process import Holder, holder_of
from tests.acceptance.conftest import SGLANG_MODELS, Installation
from tests.conftest import ROOT
from tests.project import Project, wait_until

pytestmark = pytest.mark.sglang

VERSION = "0.5.23"
#: It starts in 15 to 120 s, depending on what else the machine does.
START_S = 300.0
PROC, SHM = Path("/proc"), Path("/dev/shm")

SWEEP = ("--isl", "64", "--osl", "32", "--conc", "2,4", "--num-prompts", "16")
#: Long enough that a signal comes before the second point's end.
LOAD = ("--isl", "64", "--osl", "128", "--conc", "2,4", "--num-prompts", "16", "--accuracy", "off")
#: Requests of its first point, warm-ups included, and of its second one's warm-up.
FIRST_POINT, SECOND_WARMUP = 2 * 2 + 16, 2 * 4
REPEATED = ("--isl", "64", "--osl", "16", "--conc", "2", "--num-prompts", "16", "--accuracy", "off")

Launch = Callable[..., tuple[str, ...]]


@pytest.fixture(scope="module")
def rows(shared: Path) -> Path:
    return shared / "data/wikitext2_raw_test_rows.jsonl"


@pytest.fixture(scope="module")
def baseline(sglang: Installation, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What transformers makes of the same documents, measured without any server."""

    def measured(model: str) -> Path:
        output = tmp_path_factory.mktemp("baseline") / f"{model}.json"
        options = (f"--data={rows}", "--limit=3", f"--torch-python={sglang.python}", f"--output={output}")
        command = [sys.executable, "-m", "tools.measure_transformers", str(sglang.model(model)), *options]
        subprocess.run(command, cwd=ROOT, check=True)
        return output

    return measured


@pytest.fixture
def port(project: Project) -> Iterator[int]:
    """A free port; whatever a failed test leaves running in its folder is ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = int(listener.getsockname()[1])
    yield number
    for pid in running(project):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launch(sglang: Installation, project: Project, port: int) -> Launch:
    """Options that launch it, by a recipe that extends the shipped one."""

    def options(model: str = "tiny-llama", *, words: tuple[str, ...] = (), arguments: str = "") -> tuple[str, ...]:
        command = ["{python}", str(sglang.scripts / "serve.py"), *words]
        recipe = project.folder / "sglang_cpu.toml"
        recipe.write_text(
            f"""
summary = "SGLang on a PyTorch without CUDA"
source = "these tests"
extends = "cpu"
command = {json.dumps(command)}

[environment]
PYTHONPATH = {json.dumps(str(sglang.scripts))}
HF_HUB_OFFLINE = "1"
TRANSFORMERS_OFFLINE = "1"
OMP_NUM_THREADS = "1"

[arguments]
max-total-tokens = 65536
{arguments}
""",
            encoding="utf-8",
        )
        python = f"--sglang-python={sglang.python}"
        return ("--engine=sglang", f"--port={port}", f"--recipe={recipe}", python, f"--model={sglang.model(model)}")

    return options


@pytest.fixture
def nothing_left(project: Project, port: int) -> Callable[[], None]:
    """Call it at the end: no process, no listener, nothing in /dev/shm."""
    before = set(os.listdir(SHM))  # noqa: PTH208, names and not paths

    def check() -> None:
        assert running(project) == []
        assert holder_of(port) is None
        # Other servers of this machine come and go; their files have users.
        used = mapped_inodes()
        assert [path for path in SHM.iterdir() if path.name not in before and path.stat().st_ino not in used] == []

    return check


def running(project: Project) -> list[int]:
    """Processes in the project's folder: pytest, supervisor, server, children."""
    found = []
    for pid in pids():
        with suppress(OSError):
            if (PROC / str(pid) / "cwd").readlink() == project.folder:
                found.append(pid)
    return found


def mapped_inodes() -> set[int]:
    """Inodes in /dev/shm that a process has mapped."""
    inodes = set()
    for pid in pids():
        with suppress(OSError):
            for line in (PROC / str(pid) / "maps").read_text(errors="replace").splitlines():
                if f"{SHM}/" in line:
                    inodes.add(int(line.split(maxsplit=5)[4]))
    return inodes


def pids() -> list[int]:
    return [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]


def scheduler(project: Project) -> int:
    """The process that computes; HTTP is another's."""
    for pid in running(project):
        with suppress(OSError):
            if b"sglang::scheduler" in (PROC / str(pid) / "cmdline").read_bytes():
                return pid
    raise AssertionError("no process is called sglang::scheduler")


def results(project: Project) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(project.batch.glob("result_*.json"))]


def states(project: Project) -> list[str]:
    """PASSED, FAILED or NOT of each line of the summary."""
    return [line.partition(": ")[2].split()[0] for line in project.lines()]


def server_log(project: Project) -> str:
    (log,) = (project.folder / "reports/servers").glob("*.log")
    return log.read_text(errors="replace")


def wait_for_requests(project: Project, port: int, count: int) -> Holder:
    """The server's process, once its log shows so many requests."""
    wait_until(lambda: holder_of(port) is not None, "the server listens", START_S)
    begun = '"POST /v1/completions HTTP/1.1" 200'
    wait_until(lambda: server_log(project).count(begun) >= count, f"{count} requests", START_S)
    holder = holder_of(port)
    assert holder is not None
    return holder


class TestSweep:
    @pytest.mark.parametrize("model", SGLANG_MODELS)
    def test_accuracy_and_performance(
        self,
        project: Project,
        launch: Launch,
        rows: Path,
        baseline: Callable[[str], Path],
        nothing_left: Callable[[], None],
        model: str,
    ) -> None:
        """One server, the accuracy of transformers, no findings, nothing left."""
        expected = baseline(model)
        data = (f"--accuracy-data={rows}", "--accuracy-limit", "3", f"--accuracy-baseline={expected}")
        outcome = project.run(*SWEEP, *data, *launch(model), "--server-arg", f"served-model-name={model}")
        assert outcome.status == 0, outcome
        assert states(project) == ["PASSED", "PASSED"]
        assert outcome.output.count("starting SGLang by recipe sglang_cpu.toml; log: ") == 1
        assert project.summary().count("launched by recipe sglang_cpu.toml in ") == 1
        nothing_left()

        # Random weights: the gate's 3 % would let a model pass that reads other tokens (0.1 % in bits per byte).
        figures = json.loads(expected.read_text())["baselines"][0]["figures"]
        for result in results(project):
            for name, tolerance in (("bits_per_byte", 2e-4), ("byte_perplexity", 2e-4), ("word_perplexity", 2e-3)):
                assert result["accuracy"][name] == pytest.approx(figures[name], rel=tolerance)
            assert result["validation"]["findings"] == []
            server = result["server"]
            assert (server["engine"], server["model"], server["num_gpus"]) == ("sglang", model, 1)
            assert server["info"]["version"] == VERSION
            assert server["changes"] == []
            assert "--disable-radix-cache" in server["launch"]["command"]
            assert Path(server["launch"]["log"]).is_file()
            # It tells since the recipe has enable-cache-report.
            assert result["client"]["prefix_cache"] == {
                "requests_told": 16, "prompt_tokens": 16 * 64, "cached_tokens": 0,
            }  # fmt: skip


class TestStart:
    """A start that fails is reported at once, with what was found and what to do."""

    def fails(self, project: Project, *args: str) -> str:
        outcome = project.run(*SWEEP, "--accuracy", "off", *args)
        assert outcome.status == 1, outcome
        assert states(project) == ["FAILED", "NOT"]
        return outcome.output

    def test_other_model(self, project: Project, launch: Launch, nothing_left: Callable[[], None]) -> None:
        """A server that lists another model is not measured, and ended."""
        output = self.fails(project, *launch(words=("--served-model-name=another",)))
        assert "SGLang serves another and not " in output
        nothing_left()

    def test_no_model(self, project: Project, launch: Launch, nothing_left: Callable[[], None]) -> None:
        """The log of a process that ends says that the folder is not there."""
        args = [*launch()[:-1], f"--model={project.folder / 'absent'}"]
        output = self.fails(project, *args)
        assert f"SGLang did not start: exit status 1: there is no folder {project.folder / 'absent'}; " in output
        nothing_left()

    def test_unknown_argument(self, project: Project, launch: Launch, nothing_left: Callable[[], None]) -> None:
        """It is named, and where it came from."""
        output = self.fails(project, *launch(), "--server-arg", "no-such-argument=1")
        assert "SGLang did not start: exit status 2: " in output
        assert "unrecognized arguments: --no-such-argument=1; " in output
        nothing_left()


class TestWhileMeasuring:
    """A server that ends or hangs ends the sweep; finished points are kept."""

    def is_lost(self, project: Project, port: int, process: subprocess.Popen[str], number: signal.Signals) -> str:
        """The output of a sweep whose scheduler gets a signal in the second point."""
        wait_for_requests(project, port, FIRST_POINT + SECOND_WARMUP + 1)
        os.kill(scheduler(project), number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1, output
        assert states(project) == ["PASSED", "FAILED"]
        first, second = results(project)
        assert first["verdict"]["status"] == "PASSED"
        assert [finding["check"] for finding in second["validation"]["findings"]][:1] == ["h11"]
        return output

    def test_killed_scheduler(
        self, project: Project, launch: Launch, port: int, nothing_left: Callable[[], None]
    ) -> None:
        """SGLang kills itself then; its log says why, and the log's last lines are shown."""
        output = self.is_lost(project, port, project.start(*LOAD, *launch()), signal.SIGKILL)
        assert "SGLang has ended: " in project.lines()[1]
        assert "was killed (SIGKILL)" in project.lines()[1]
        assert "crashed with exit code -9" in output
        nothing_left()

    def test_stopped_scheduler(
        self, project: Project, launch: Launch, port: int, nothing_left: Callable[[], None]
    ) -> None:
        """It hangs although its HTTP process accepts connections; it is ended."""
        process = project.start(*LOAD, *launch(), "--idle-timeout", "3")
        self.is_lost(project, port, process, signal.SIGSTOP)
        assert f"the server at http://127.0.0.1:{port} hangs: /health is not answered" in project.lines()[1]
        nothing_left()

    def test_nothing_outlives_sigkill(
        self, project: Project, launch: Launch, port: int, nothing_left: Callable[[], None]
    ) -> None:
        """Whoever kills pytest has no server left, nor anything in /dev/shm."""
        process = project.start(*LOAD, *launch())
        wait_for_requests(project, port, 1)
        process.kill()
        process.communicate(timeout=60)
        wait_until(lambda: not running(project), "the server's processes ended")
        nothing_left()


class TestKept:
    def test_found_by_the_next_session(
        self, project: Project, launch: Launch, port: int, nothing_left: Callable[[], None]
    ) -> None:
        """The next session measures it, and finds repeated prompts in its cache."""
        seed = ("--prompt-seed", "7")
        cached = launch(arguments="disable-radix-cache = false")
        outcome = project.run(*REPEATED, *seed, *cached, "--server-arg", "served-model-name=kept", "--keep-server")
        assert outcome.status == 0, outcome
        holder = holder_of(port)
        assert holder is not None
        assert f"the server keeps running at http://127.0.0.1:{port} (pid {holder.pid})" in outcome.output
        assert results(project)[0]["client"]["prefix_cache"]["cached_tokens"] == 0

        theirs = ("--model", "kept", "--port", str(port))
        repeated = project.run(*REPEATED, *seed, *theirs, "--no-flush-cache")
        assert repeated.status == 0, repeated
        assert f"served by http://127.0.0.1:{port} (it runs already and serves kept)" in repeated.output
        (result,) = results(project)
        assert result["server"]["process"]["pid"] == holder.pid
        assert result["client"]["prefix_cache"]["cached_tokens"] == 16 * 63
        assert [finding["check"] for finding in result["validation"]["findings"]] == ["s3"]

        flushed = project.run(*REPEATED, *seed, *theirs)
        assert flushed.status == 0, flushed
        (result,) = results(project)
        assert result["client"]["prefix_cache"]["cached_tokens"] == 0
        assert result["validation"]["findings"] == []

        refused = project.run(*REPEATED, *cached)
        assert refused.status == 4, refused
        assert f"port {port} is taken by process {holder.pid} (" in refused.output
        assert f"which serves kept: measure it with --server-url http://127.0.0.1:{port}" in refused.output

        os.kill(holder.pid, signal.SIGTERM)
        wait_until(lambda: not running(project), "all of it ended")
        nothing_left()
