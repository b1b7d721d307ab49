"""The embedded engine as a process: its clients, its start, its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pytest_dsr1.servers import ServerError
from tests import tiny_deepseek
from tests.conftest import ROOT
from tests.engine import POINT, engine, running_engine
from tests.engine_client import DEADLINE_S, alive, eventually, metric


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_deepseek.make(context=400).save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def url(folder: Path, tmp_path: Path) -> Iterator[str]:
    with running_engine(tmp_path, folder) as served:
        yield served.url


class TestConnections:
    """Clients that come and go."""

    def test_a_client_that_leaves_frees_its_slot(self, tmp_path: Path) -> None:
        """Its sequence stops; until then the cache cannot be flushed."""
        long = tiny_deepseek.make(context=100_000).save(tmp_path / "long")
        with running_engine(tmp_path, long) as served:
            body = json.dumps({"prompt": [5], "max_tokens": 99_000, "ignore_eos": True, "stream": True}).encode()
            host, port = served.url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as client:
                head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
                client.sendall(head + body)
                assert client.recv(100).startswith(b"HTTP/1.1 200")
                busy = requests.post(f"{served.url}/flush_cache", timeout=DEADLINE_S)
                assert (busy.status_code, busy.text.strip()) == (400, "Flush cache failed.")
                eventually(lambda: metric(served.url, "num_running_reqs") == 1)
            eventually(lambda: metric(served.url, "num_running_reqs") == 0)
            assert requests.post(f"{served.url}/flush_cache", timeout=DEADLINE_S).status_code == 200

    def test_an_old_client_gets_its_stream_unframed(self, url: str) -> None:
        """HTTP/1.0 knows no chunks: the body ends with the connection."""
        body = json.dumps({"prompt": [5], "max_tokens": 3, "stream": True}).encode()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as client:
            client.sendall(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            _, answer = b"".join(iter(lambda: client.recv(4096), b"")).split(b"\r\n\r\n", 1)
        assert [block[:6] for block in answer.split(b"\n\n")] == [b"data: "] * 4 + [b""]


class TestProcess:
    """It ends when it should, and says why when it cannot begin."""

    def test_stop_ends_it(self, folder: Path, tmp_path: Path) -> None:
        """More than once is no error; it can be started again."""
        server = engine(tmp_path, folder)
        for _ in range(2):
            served = server.serve(POINT)
            assert requests.get(f"{served.url}/health", timeout=DEADLINE_S).status_code == 200
            pid = server.pid
            assert pid is not None
            server.stop()
            assert not alive(pid)
            server.stop()

    @pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_with_status_0(self, folder: Path, sign: signal.Signals) -> None:
        """Started by hand, it prints where it serves."""
        command = [sys.executable, "-m", "pytest_dsr1.reference", "--model", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["pid"] == process.pid
            process.send_signal(sign)
            assert process.wait(DEADLINE_S) == 0

    def test_it_does_not_survive_its_parent(self, folder: Path, tmp_path: Path) -> None:
        """Even if the parent is killed, with a stream in flight."""
        parent = textwrap.dedent(f"""
            import requests, time
            from pathlib import Path
            from tests.engine import POINT, engine
            server = engine(Path({str(tmp_path)!r}), Path({str(folder)!r}))
            served = server.serve(POINT)
            body = {{"prompt": [5], "max_tokens": 390, "ignore_eos": True, "stream": True}}
            reply = requests.post(served.url + "/v1/completions", json=body, stream=True, timeout=30)
            print(server.pid, flush=True)
            time.sleep(600)
        """)
        with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            assert alive(pid)
            process.kill()
        eventually(lambda: not alive(pid))

    def test_a_start_that_fails_shows_the_log(self, tmp_path: Path) -> None:
        """What was found, and where more is."""
        server = engine(tmp_path, tmp_path / "nothing")
        with pytest.raises(ServerError, match=r"(?s)exit status 1.*log: .*config\.json"):
            server.serve(POINT)
        assert server.pid is None

    def test_one_that_is_not_ready_in_time_is_given_up(self, folder: Path, tmp_path: Path) -> None:
        """And nothing of it stays."""
        server = engine(tmp_path, folder, timeout_s=0.0)
        with pytest.raises(ServerError, match="not ready within 0 s"):
            server.serve(POINT)
        assert server.pid is None

    def test_it_starts_from_anywhere(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever the working directory, and without an installed package."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("PYTHONPATH", raising=False)
        with running_engine(tmp_path, folder) as served:
            assert served.is_reference
