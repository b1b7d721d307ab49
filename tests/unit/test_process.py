"""A server under its supervisor: it is started, ended with all of its processes, or kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.process import ServerProcess
from tests.project import wait_until

#: A stand-in for a server: it prints its processes, and then sleeps unless a test adds something.
SERVER = r"""
import os, signal, subprocess, sys, time
child = [sys.executable, "-c", "import os, time; os.write(1, b'child\\n'); time.sleep(600)"]
{before}
# In one piece, also where Python does not buffer: the children write to the same pipe.
pids = [os.getpid(), *(each.pid for each in globals().get("children", ()))]
os.write(1, b"pids %s\n" % " ".join(map(str, pids)).encode())
{after}
time.sleep(600)
"""


class Servers:
    """Makes servers that do not outlive a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[ServerProcess] = []

    def start(
        self, before: str = "", after: str = "", *, log: Path | None = None, grace_s: float = 10.0
    ) -> ServerProcess:
        code = SERVER.format(before=before, after=after)
        server = ServerProcess(
            [sys.executable, "-c", code], {"GIVEN": "yes"}, log or self.folder / "server.log", grace_s
        )
        self._started.append(server)
        server.start()
        return server

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    def pids(self) -> list[int]:
        """Of the server and the children that it named, once it did."""
        said = re.compile(r"^pids (.+)\n", re.MULTILINE)
        wait_until(lambda: said.search(self.log()) is not None, "the server said who it is")
        return [int(word) for line in said.findall(self.log()) for word in line.split()]

    def end(self) -> None:
        for server in self._started:
            server.stop()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    servers = Servers(tmp_path)
    yield servers
    servers.end()


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended may wait for its parent (Z), or be on its way out of the table (X)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def wait_for_end(server: ServerProcess) -> str:
    wait_until(lambda: server.poll() != "", "the server ended")
    return server.ended


def test_status_and_last_lines_of_one_that_ends(servers: Servers) -> None:
    """Its exit status is known, and the log has its last line."""
    server = servers.start(after="print('the last word'); sys.exit(3)")
    assert wait_for_end(server) == "exit status 3"
    assert servers.log().splitlines()[-1] == "the last word"


def test_one_that_is_killed(servers: Servers) -> None:
    """The message names the signal."""
    server = servers.start()
    os.kill(servers.pids()[0], signal.SIGKILL)
    assert wait_for_end(server) == "killed by SIGKILL"


def test_environment_is_ours_and_what_is_added(servers: Servers) -> None:
    """The server gets the variables of this process and those that are added."""
    server = servers.start(after="print(os.environ['GIVEN'], os.environ['HOME']); sys.exit(0)")
    wait_for_end(server)
    assert servers.log().splitlines()[-1] == f"yes {os.environ['HOME']}"


def test_stopped_in_good_order(servers: Servers) -> None:
    """A server that handles SIGTERM ends by itself."""
    server = servers.start(before="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))")
    servers.pids()
    server.stop()
    assert server.ended == "exit status 7"


def test_killed_after_the_grace(servers: Servers) -> None:
    """A server that ignores SIGTERM gets SIGKILL."""
    server = servers.start(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)", grace_s=0.2)
    servers.pids()
    server.stop()
    assert server.ended == "killed by SIGKILL"


def test_one_that_was_stopped_by_a_signal_is_ended(servers: Servers) -> None:
    """A server that was stopped by SIGSTOP is continued, so it ends before the grace is over."""
    server = servers.start(before="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", grace_s=30.0)
    os.kill(servers.pids()[0], signal.SIGSTOP)
    server.stop()
    assert server.ended == "exit status 7"


@pytest.mark.parametrize("end", ["stop", "death"])
def test_no_process_of_it_is_left(servers: Servers, end: str) -> None:
    """The processes of its group end with it, and so does a child that left the group."""
    server = servers.start(
        before="children = [subprocess.Popen(child), subprocess.Popen(child, start_new_session=True)]"
    )
    pids = servers.pids()
    assert len(pids) == 3
    if end == "stop":
        server.stop()
    else:
        os.kill(pids[0], signal.SIGKILL)
        wait_for_end(server)
    assert not any(map(is_alive, pids))


def test_nothing_outlives_our_death(servers: Servers, tmp_path: Path) -> None:
    """The supervisor ends the server when whoever started it is gone, by SIGKILL too."""
    log = tmp_path / "server.log"
    code = f"""
import sys, time
from pathlib import Path
from pytest_dsr1.servers.process import ServerProcess
ServerProcess([sys.executable, "-c", {SERVER.format(before="", after="")!r}], {{}}, Path({str(log)!r}), 5.0).start()
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        wait_until(log.exists, "a log")
        pids = servers.pids()
        starter.kill()
    wait_until(lambda: not any(map(is_alive, pids)), "the server ended")


def test_kept_when_we_are_gone(servers: Servers) -> None:
    """A server that is kept runs on, writes its log, and takes all of its processes with it when it is ended."""
    server = servers.start(
        # Before it names itself: a signal that comes earlier than the handler would end it.
        before="""
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'still here\\n'))
children = [subprocess.Popen(child)]
""",
    )
    pids = servers.pids()
    try:
        server.keep()
        assert server.kept
        os.kill(pids[0], signal.SIGUSR1)
        wait_until(lambda: "still here" in servers.log(), "it went on writing its log")
    finally:
        os.kill(pids[0], signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, pids)), "all of it ended")


def test_full_disk_does_not_disturb_it(servers: Servers) -> None:
    """A log that cannot be written is said to be so, and the server goes on."""
    server = servers.start(after="sys.exit(0)", log=Path("/dev/full"))
    assert wait_for_end(server) == "exit status 0"
    assert server.log_error == "No space left on device"


def test_log_in_a_place_that_does_not_exist(servers: Servers) -> None:
    """No server is started, and the error names the file."""
    (servers.folder / "file").touch()
    with pytest.raises(ServerError, match=r"log .*file/server.log cannot be written"):
        servers.start(log=servers.folder / "file" / "server.log")


def test_command_that_is_none(servers: Servers) -> None:
    """The error names the command, and says why it cannot be run."""
    server = ServerProcess(["/nowhere/python3", "-m", "sglang"], {}, servers.folder / "server.log", 1.0)
    with pytest.raises(ServerError, match=r"/nowhere/python3.*No such file"):
        server.start()


class TestSharedMemory:
    """Files that a server leaves in /dev/shm are removed; files of others stay."""

    NAME = f"dsr1-test-{os.getpid()}"

    @pytest.fixture(autouse=True)
    def _tidy(self) -> Iterator[None]:
        if not Path("/dev/shm").is_dir():
            pytest.skip("no /dev/shm on this system")
        yield
        for path in Path("/dev/shm").glob(f"*{self.NAME}*"):
            with suppress(OSError):
                path.unlink()

    def test_a_file_that_it_had_mapped(self, servers: Servers) -> None:
        """A file of any name is removed, since the server had it mapped."""
        server = servers.start(before=self._map(self.NAME))
        servers.pids()
        server.ready()
        server.stop()
        assert self._left() == []

    def test_a_semaphore_that_it_had_mapped(self, servers: Servers) -> None:
        """The kernel shows a mapped semaphore under another name than that of its file."""
        # Without multiprocessing's own tracker, which would remove it now and then.
        opened = f"import _multiprocessing; s = _multiprocessing.SemLock(1, 1, 1, '/{self.NAME}', False)"
        server = servers.start(before=opened)
        servers.pids()
        assert self._left() == [f"sem.{self.NAME}"]
        server.stop()
        assert self._left() == []

    def test_a_file_of_sglang_s_name(self, servers: Servers) -> None:
        """A file with a name of SGLang's is removed also where the server ended before it was inspected."""
        name = f"sglang_loads_{self.NAME}"
        server = servers.start(before=self._map(name))
        os.kill(servers.pids()[0], signal.SIGKILL)
        wait_for_end(server)
        assert self._left() == []

    def test_files_of_others_stay(self, servers: Servers) -> None:
        """A file from before the start, one that a process uses, and one that the server never had stay."""
        before = Path("/dev/shm") / f"sglang_loads_{self.NAME}-before"
        before.write_bytes(b"x")
        server = servers.start()
        servers.pids()
        used = Path("/dev/shm") / f"sglang_loads_{self.NAME}-used"
        stranger = Path("/dev/shm") / f"{self.NAME}-stranger"
        stranger.write_bytes(b"x")
        with used.open("wb"):
            server.stop()
        assert self._left() == sorted(path.name for path in (before, used, stranger))

    def _left(self) -> list[str]:
        return sorted(path.name for path in Path("/dev/shm").glob(f"*{self.NAME}*"))

    @staticmethod
    def _map(name: str) -> str:
        written = f"f = open('/dev/shm/{name}', 'w+b'); f.write(bytes(4096)); f.flush()"
        return f"import mmap; {written}; m = mmap.mmap(f.fileno(), 4096)"
