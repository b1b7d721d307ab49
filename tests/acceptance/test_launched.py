"""A server that the sweep launches: a stand-in, from its start to its end."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.servers.process import Holder, holder_of
from tests.project import Project, wait_until
from tests.servers.launched import write_recipe
from tests.servers.timed import TimedServer, timed_server

#: In place of the library that asks NVIDIA's driver.
NVML = """
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "NVIDIA GeForce RTX 4090"
"""
SWEEP = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "20", "--conc", "1,2,4")


@pytest.fixture
def port() -> Iterator[int]:
    """A free port; whoever serves there in the end is ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = int(listener.getsockname()[1])
    yield number
    if (holder := holder_of(number)) is not None:
        os.kill(holder.pid, signal.SIGKILL)


@pytest.fixture
def launch(project: Project, port: int) -> Any:
    """Options that launch a stand-in; its misbehaviour as keywords."""

    def options(**behaviour: Any) -> tuple[str, ...]:
        recipe = write_recipe(project.folder, **behaviour)
        return ("--engine", "sglang", "--recipe", str(recipe), "--port", str(port))

    return options


def results(project: Project) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(project.batch.glob("result_*.json"))]


def statuses(project: Project) -> list[str]:
    return [re.sub(r" \(\d+s\)| [\d:]+$", "", line.partition(": ")[2]) for line in project.lines()]


def served_at(port: int) -> TimedServer:
    return TimedServer(f"http://127.0.0.1:{port}", port, "stand-in", None)  # type: ignore[arg-type] # not our child


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for_requests(port: int, count: int) -> Holder:
    """The server's process, once it has got so many requests."""
    wait_until(lambda: listens(port), "the server listens")
    wait_until(lambda: len(served_at(port).truth()["requests"]) >= count, f"{count} requests")
    holder = holder_of(port)
    assert holder is not None
    return holder


class TestSweep:
    def test_one_server_for_all_points(self, project: Project, launch: Any, port: int) -> None:
        """It is launched once; results and summary say how; nothing of it is left."""
        outcome = project.run(*SWEEP, *launch(children=True, shm=[f"sglang_loads_test-{port}"]))
        assert outcome.status == 0, outcome
        assert outcome.output.count("starting SGLang by recipe stand-in.toml; log: ") == 1
        servers = [result["server"] for result in results(project)]
        assert len({json.dumps(server["launch"]) for server in servers}) == 1
        assert servers[0]["engine"] == "sglang"
        assert servers[0]["num_gpus"] == 1
        assert servers[0]["changes"] == []
        assert servers[0]["launch"]["recipe"] == "stand-in.toml"
        assert Path(servers[0]["launch"]["log"]).read_text().startswith("Load weight begin.")
        notes = [
            line for line in project.summary().splitlines() if line.startswith("launched by recipe stand-in.toml in ")
        ]
        assert len(notes) == 1
        assert "-m tests.servers.launched --model-path=stand-in --host=127.0.0.1" in notes[0]
        assert holder_of(port) is None
        assert not _left(project)
        assert not list(Path("/dev/shm").glob(f"*test-{port}"))

    def test_restarted_where_the_recipe_changes(self, project: Project, launch: Any) -> None:
        """Where a [[when]] applies there is another server; the summary names both."""
        outcome = project.run(*SWEEP, "--isl", "32", *launch())
        assert outcome.status == 0, outcome
        assert "restarting SGLang for isl32-osl1-conc4: chunked-prefill-size 4096 -> 1024" in outcome.output
        sizes = [result["server"]["info"]["chunked_prefill_size"] for result in results(project)]
        assert sizes == [4096, 4096, 1024]
        assert project.summary().count("launched by recipe stand-in.toml in ") == 2

    def test_not_restarted_where_an_argument_is_typed(self, project: Project, launch: Any) -> None:
        """What is typed goes before the recipe's rules."""
        outcome = project.run(*SWEEP, "--isl", "32", *launch(), "--server-arg", "chunked-prefill-size=2048")
        assert outcome.status == 0, outcome
        assert {result["server"]["info"]["chunked_prefill_size"] for result in results(project)} == {2048}

    def test_with_one_worker(self, project: Project, launch: Any, port: int) -> None:
        """The controller owns it; the worker's results say the same of it."""
        outcome = project.run(*SWEEP, *launch(), "-n", "1")
        assert outcome.status == 0, outcome
        assert {result["server"]["engine"] for result in results(project)} == {"sglang"}
        assert project.summary().count("launched by recipe stand-in.toml in ") == 1
        assert holder_of(port) is None

    def test_more_workers_are_refused(self, project: Project, launch: Any) -> None:
        """Two workers on one server would measure each other."""
        outcome = project.run(*SWEEP, *launch(), "-n", "2")
        assert outcome.status == 4, outcome
        assert "-n 2: two workers on one server would measure each other, and there is one" in outcome.output


class TestStart:
    """A start that fails is reported at once, with what was found and what to do."""

    def fails(self, project: Project, *args: str) -> str:
        outcome = project.run(*SWEEP, *args)
        assert outcome.status == 1, outcome
        assert [words.partition(" ")[0] for words in statuses(project)] == ["FAILED", "NOT", "NOT"]
        assert "Traceback" not in outcome.output.partition("short test summary")[0]
        return outcome.output

    def test_port_taken(self, project: Project, launch: Any, port: int) -> None:
        """Before anything is started: by whom, and how to use what is there."""
        with timed_server(port=port, model="theirs") as other:
            outcome = project.run(*SWEEP, *launch())
            assert outcome.status == 4, outcome
            assert f"port {port} is taken by process {other.process.pid}" in outcome.output
            assert f"which serves theirs: measure it with --server-url http://127.0.0.1:{port}" in outcome.output
        assert not project.batches

    def test_other_model(self, project: Project, launch: Any) -> None:
        """A server that names another model is not measured."""
        assert "SGLang serves another and not stand-in" in self.fails(project, *launch(named="another"))

    def test_death(self, project: Project, launch: Any) -> None:
        """The cause is found in its log, and the log's last lines are shown."""
        says = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."]
        output = self.fails(project, *launch(says=says, dies=1))
        assert "SGLang did not start: exit status 1" in output
        assert "memory" in statuses(project)[0]
        assert f"    {says[0]}" in output

    def test_death_with_a_worker(self, project: Project, launch: Any) -> None:
        """The batch has it, as without one."""
        output = self.fails(project, *launch(dies=1), "-n", "1")
        assert "SGLang did not start: exit status 1" in output

    def test_no_end(self, project: Project, launch: Any, port: int) -> None:
        """It is waited for as long as --launch-timeout says, and then ended."""
        output = self.fails(project, *launch(never_ready=True), "--launch-timeout", "1")
        assert "SGLang was not ready within 1 s" in output
        assert "--launch-timeout" in output
        assert not _left(project)

    def test_log_that_cannot_be_written(self, project: Project, launch: Any) -> None:
        """No server without a log."""
        (project.folder / "reports").mkdir()
        (project.folder / "reports" / "servers").touch()
        assert "cannot be written" in self.fails(project, *launch())

    def test_log_that_gets_too_large(self, project: Project, launch: Any) -> None:
        """A full disk does not disturb the measurement, and is reported."""
        process = project.start(*SWEEP, *launch(noise=20_000))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "the server's log is incomplete: File too large" in output

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
    def test_interrupted(self, project: Project, launch: Any, number: signal.Signals) -> None:
        """What was being started is ended."""
        process = project.start(*SWEEP, *launch(never_ready=True, children=True))
        wait_until(lambda: len(_left(project)) >= 3, "the server's processes run")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == (2 if number == signal.SIGINT else 143), output
        assert not _left(project)


class TestWhileMeasuring:
    """A server that ends or hangs ends the sweep; finished points are kept."""

    @pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
    def test_death(self, project: Project, launch: Any, port: int, workers: tuple[str, ...]) -> None:
        """Exit status 1, the cause in the point's line, the log's last lines shown."""
        process = project.start(*SWEEP, *launch(answers={"ttft_s": 0.05}), *workers)
        os.kill(wait_for_requests(port, 22 + 4).pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        assert [words.partition(" ")[0] for words in statuses(project)] == ["PASSED", "FAILED", "NOT"]
        assert "SGLang has ended: killed by SIGKILL" in statuses(project)[1]
        assert "    Load weight begin." in output
        assert results(project)[1]["validation"]["findings"][0]["check"] == "h11"
        assert "complete it with: pytest --resume" in output
        # What was lost with the server was not measured: it is not left at that.
        outcome = project.run("--resume", str(project.batch))
        assert outcome.status == 0, outcome
        assert statuses(project) == ["PASSED"] * 3

    def test_hang(self, project: Project, launch: Any, port: int) -> None:
        """One that is stopped answers nothing; it is ended all the same."""
        process = project.start(*SWEEP, *launch(answers={"ttft_s": 0.05}), "--idle-timeout", "1")
        os.kill(wait_for_requests(port, 22 + 4).pid, signal.SIGSTOP)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        assert [words.partition(" ")[0] for words in statuses(project)] == ["PASSED", "FAILED", "NOT"]
        assert f"the server at http://127.0.0.1:{port} hangs: /health is not answered" in statuses(project)[1]
        assert not _left(project)

    def test_death_between_points(self, project: Project, launch: Any) -> None:
        """It is noticed before the next point is measured."""
        project.write(
            "conftest.py",
            "import psutil",
            "def pytest_dsr1_point_ended(point, result):",
            "    if point.conc == 1:",
            "        server = psutil.Process(result.server.process['pid'])",
            "        server.kill()",
            "        server.wait()",
        )
        outcome = project.run(*SWEEP, *launch(), "--conc", "1,2")
        assert outcome.status == 1, outcome
        assert [words.partition(" ")[0] for words in statuses(project)] == ["PASSED", "FAILED"]
        assert "killed by SIGKILL" in statuses(project)[1]

    def test_nothing_outlives_sigkill(self, project: Project, launch: Any, port: int) -> None:
        """Whoever kills pytest has no server left."""
        process = project.start(*SWEEP, *launch(children=True))
        wait_for_requests(port, 1)
        process.kill()
        process.communicate(timeout=60)
        wait_until(lambda: not _left(project), "the server's processes ended")
        wait_until(lambda: holder_of(port) is None, "the port is free")

    def test_interrupted_twice(self, project: Project, launch: Any, port: int) -> None:
        """The second Ctrl+C waits for no grace, and leaves nothing all the same."""
        process = project.start(*SWEEP, *launch(deaf=True, children=True, answers={"ttft_s": 0.05}))
        wait_for_requests(port, 22 + 4)
        process.send_signal(signal.SIGINT)
        (log,) = (project.folder / "reports" / "servers").iterdir()
        wait_until(lambda: log.read_text().endswith("no\n"), "the server is asked to end")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 2, output
        assert not _left(project)
        assert statuses(project) == ["PASSED", "INTERRUPTED", "NOT RUN"], output

    def test_supervisor_that_dies(self, project: Project, launch: Any, port: int) -> None:
        """The server goes with it, one that ignores SIGTERM too, and so does the sweep."""
        process = project.start(*SWEEP, *launch(deaf=True, answers={"ttft_s": 0.05}))
        holder = wait_for_requests(port, 22 + 4)
        parent = int(Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        wait_until(lambda: not _left(project), "the server ended")
        assert "its supervisor is gone" in statuses(project)[1]

    def test_deaf_one_is_killed(self, project: Project, launch: Any, port: int) -> None:
        """SIGKILL follows where SIGTERM is ignored."""
        outcome = project.run(*SWEEP, "-k", "conc1-", *launch(deaf=True), "--conc", "1")
        assert holder_of(port) is None, outcome


class TestKept:
    def test_found_by_the_next_session(self, project: Project, launch: Any, port: int) -> None:
        """--keep-server leaves it running, and the next session measures it."""
        outcome = project.run(*SWEEP, *launch(), "--keep-server")
        assert outcome.status == 0, outcome
        holder = holder_of(port)
        assert holder is not None
        assert f"the server keeps running at http://127.0.0.1:{port} (pid {holder.pid})" in outcome.output
        assert f"stop it with: kill {holder.pid}" in outcome.output

        again = project.run(*SWEEP, "--model", "stand-in", "--port", str(port))
        assert again.status == 0, again
        assert f"served by http://127.0.0.1:{port} (it runs already and serves stand-in)" in again.output
        assert results(project)[0]["server"]["process"]["pid"] == holder.pid

        same = project.run(*SWEEP, *launch())
        assert same.status == 0, same
        assert f"(process {holder.pid}, launched as recipe stand-in.toml says)" in same.output

        other = project.run(*SWEEP, *launch(), "--server-arg", "chunked-prefill-size=1")
        assert other.status == 4, other
        assert f"port {port} is taken by process {holder.pid}" in other.output

        os.kill(holder.pid, signal.SIGTERM)
        wait_until(lambda: not _left(project), "all of it ended")

    def test_found_by_a_resumed_batch(self, project: Project, launch: Any, port: int) -> None:
        """An interrupted batch is completed on the kept server, or on a new one."""
        process = project.start(*SWEEP, *launch(answers={"ttft_s": 0.05}), "--keep-server")
        wait_for_requests(port, 22 + 4)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        outcome = project.run("--resume", str(project.batch), "-k", "conc2")
        assert outcome.status == 0, outcome
        assert statuses(project) == ["PASSED", "PASSED", "NOT RUN"]
        holder = holder_of(port)
        assert holder is not None
        os.kill(holder.pid, signal.SIGTERM)
        wait_until(lambda: not _left(project), "all of it ended")
        again = project.run("--resume", str(project.batch))
        assert again.status == 0, again
        assert [result["server"]["engine"] for result in results(project)] == ["sglang", "external", "sglang"]
        assert not _left(project)

    def test_options_of_a_launch_are_refused_on_it(self, project: Project, launch: Any, port: int) -> None:
        """What is typed for a launch would not be true of a server that runs already."""
        with timed_server(port=port, model="stand-in"):
            outcome = project.run(*SWEEP, "--engine", "auto", *launch()[2:])
        assert outcome.status == 4, outcome
        assert "--recipe is for launching SGLang, but http://127.0.0.1:" in outcome.output


class TestAuto:
    """What is taken where a GPU is seen that no recipe is for."""

    POINT = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "4", "--conc", "1")

    @pytest.fixture(autouse=True)
    def _gpu(self, project: Project) -> None:
        library = project.folder / "libraries" / "pynvml.py"
        library.parent.mkdir()
        library.write_text(NVML)
        paths = [str(library.parent), project.environment.get("PYTHONPATH", "")]
        project.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def test_a_server_that_runs(self, project: Project, port: int) -> None:
        """It needs no recipe."""
        with timed_server(port=port, model="theirs"):
            outcome = project.run(*self.POINT, "--model", "theirs", "--port", str(port))
        assert outcome.status == 0, outcome
        assert f"served by http://127.0.0.1:{port} (it runs already and serves theirs)" in outcome.output

    def test_the_embedded_engine_where_there_is_no_sglang(self, project: Project, port: int) -> None:
        """Whatever GPU a laptop has, everything can be tried on it."""
        outcome = project.run(*self.POINT, "--port", str(port))
        assert outcome.status == 0, outcome
        assert "served by the embedded reference engine, since no server answers" in outcome.output
        assert "no Python with SGLang was found" in outcome.output

    def test_never_another_model_than_the_one_typed(self, project: Project, port: int) -> None:
        """The embedded engine has a model of its own."""
        outcome = project.run(*self.POINT, "--port", str(port), "--model", "mine")
        assert outcome.status == 4, outcome
        assert f"--model mine was typed, but no server answers at http://127.0.0.1:{port}" in outcome.output

    def test_a_recipe_is_asked_for_where_there_is(self, project: Project, port: int) -> None:
        """SGLang is to serve then, and nobody knows how."""
        python = project.folder / "bin" / "python3"
        python.parent.mkdir()
        python.write_text("""#!/bin/sh\necho '{"sglang": "0.5.23"}'\n""")
        python.chmod(0o755)
        project.environment["PATH"] = f"{python.parent}{os.pathsep}{project.environment['PATH']}"
        outcome = project.run(*self.POINT, "--port", str(port))
        assert outcome.status == 4, outcome
        assert "no recipe fits 1 x NVIDIA GeForce RTX 4090; --recipe takes b200, cpu," in outcome.output


class TestShown:
    @pytest.mark.parametrize("option", ["--co", "--setup-plan"])
    def test_nothing_is_started_for_a_look(self, project: Project, launch: Any, option: str) -> None:
        """With a worker, too."""
        for workers in ((), ("-n", "1")):
            outcome = project.run(*SWEEP, *launch(), option, *workers)
            assert outcome.status == 0, outcome
        assert not (project.folder / "reports").exists()

    def test_print_launch(self, project: Project, launch: Any) -> None:
        """Every command line and its points are printed; nothing is started."""
        outcome = project.run(*SWEEP, "--isl", "32", *launch(), "--print-launch")
        assert outcome.status == 0, outcome
        lines = outcome.output.splitlines()
        first = lines.index("# for isl32-osl1-conc1, isl32-osl1-conc2")
        assert "--chunked-prefill-size=4096" in lines[first + 1]
        assert lines[first + 2] == "# for isl32-osl1-conc4"
        assert "--chunked-prefill-size=1024" in lines[first + 3]
        assert not (project.folder / "reports").exists()

    def test_preflight(self, project: Project, launch: Any) -> None:
        """Recipe, interpreter and port are looked at, and restarts announced."""
        outcome = project.run(*SWEEP, "--isl", "32", *launch(), "--preflight")
        assert outcome.status == 0, outcome
        assert "launched with stand-in by recipe stand-in.toml" in outcome.output
        assert "the server is restarted for isl32-osl1-conc4: chunked-prefill-size 4096 -> 1024" in outcome.output

    def test_unknown_recipe(self, project: Project) -> None:
        """The shipped ones are listed."""
        outcome = project.run(*SWEEP, "--engine", "sglang", "--recipe", "mi999")
        assert outcome.status == 4, outcome
        assert "mi355x" in outcome.output


def _left(project: Project) -> list[int]:
    """Processes of the project's servers: they have its variable and folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if b"STAND_IN=" in (folder / "environ").read_bytes() and (folder / "cwd").readlink() == project.folder:
                found.append(int(folder.name))
        # It ended meanwhile, is not ours, or is no process.
        except (OSError, ValueError):
            continue
    return found
