"""Which process listens on a port, with real sockets and processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_dsr1.servers.process import free_port, holder_of, is_descendant, is_taken, runs_with

#: Listens on a free port of loopback, prints it, and stays until its standard input ends.
LISTENER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
#: Starts a process that prints its pid and stays until its standard input, which is its parent's, ends.
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"])
"""

linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc/net/tcp here")


@contextmanager
def running(script: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """The pid of a Python that runs `script`, and the number that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


@pytest.fixture
def free() -> int:
    """A port on which nobody listens."""
    return free_port()


@linux
def test_the_holder_of_a_port_is_the_process_that_listens_on_it() -> None:
    """Its pid, its command line and its start are found."""
    before = time.time()
    with running(LISTENER, "--model", "x y") as (pid, port):
        holder = holder_of(port)
    assert holder is not None
    assert holder.pid == pid
    assert holder.command.startswith(f"{sys.executable} -c")
    assert holder.command.endswith("--model x y")
    # Two clocks that are cut to a second and to a tick.
    assert before - 2 <= holder.started <= time.time() + 2


@linux
def test_a_foreign_key_is_not_repeated() -> None:
    """Command lines are shown in error messages, so the values of secrets are left out."""
    with running(LISTENER, "--api-key", "sk-123", "--hf-token=abc", "--max-total-tokens", "64") as (_, port):
        holder = holder_of(port)
    assert holder is not None
    assert holder.command.endswith("--api-key … --hf-token=… --max-total-tokens 64")


@linux
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_holder_is_found_on_every_address(address: str) -> None:
    """The address at which a process listens does not matter."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.create_server((address, 0), family=family) as listener:
        holder = holder_of(listener.getsockname()[1])
        assert holder is not None
        assert holder.pid == os.getpid()


def test_a_free_port_has_no_holder(free: int) -> None:
    """The result is None, and no error."""
    assert holder_of(free) is None
    assert not is_taken("127.0.0.1", free)


@linux
def test_a_connection_holds_no_port() -> None:
    """A client's socket has a port too, but does not listen."""
    with (
        running(LISTENER) as (pid, port),
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        holder = holder_of(port)
        assert holder is not None
        assert holder.pid == pid
        assert holder_of(client.getsockname()[1]) is None


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "localhost")],
)
def test_a_port_with_a_listener_is_taken(held: str, wanted: str) -> None:
    """A listener takes a port on its own address, and on all of them."""
    with socket.create_server((held, 0)) as listener:
        assert is_taken(wanted, listener.getsockname()[1])


def test_an_empty_host_is_every_address() -> None:
    """An empty host means all addresses, as for servers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert is_taken("", listener.getsockname()[1])


def test_a_port_that_was_left_lately_is_free() -> None:
    """A connection in TIME_WAIT does not prevent a server from starting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            # Who closes first waits.
            accepted.close()
    assert not is_taken("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_another_obstacle_is_not_a_taken_port(host: str, free: int) -> None:
    """With an unused address (RFC 5737) or name (RFC 2606), the server itself reports the error."""
    assert not is_taken(host, free)


@linux
def test_a_descendant_is_one_over_any_number_of_generations() -> None:
    """A grandchild is a descendant; a parent is none of its child."""
    with running(PARENT) as (child, grandchild):
        assert is_descendant(grandchild, child)
        assert is_descendant(grandchild, os.getpid())
        assert is_descendant(child, os.getpid())
        assert not is_descendant(child, grandchild)
        assert not is_descendant(os.getpid(), child)
    assert is_descendant(os.getpid(), os.getpid())


def test_a_process_that_has_ended_is_no_descendant() -> None:
    """Neither is a pid that no process has."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert not is_descendant(process.pid, os.getpid())
    assert not is_descendant(2**30, os.getpid())


@linux
def test_a_process_keeps_its_start() -> None:
    """The same process is always reported with the same start."""
    with running(LISTENER) as (_, port):
        first, second = holder_of(port), holder_of(port)
    assert first == second


@linux
def test_a_process_is_known_by_how_it_was_started() -> None:
    """Its arguments and the given variables are compared; the path of its program and other variables are not."""
    with running(LISTENER, "--model", "x y") as (pid, _):
        argv = ["python3", "-c", LISTENER, "--model", "x y"]
        assert runs_with(pid, argv, {"PATH": os.environ["PATH"]})
        assert not runs_with(pid, [*argv, "--more"], {})
        assert not runs_with(pid, argv, {"PATH": "/nowhere"})
    assert not runs_with(pid, argv, {})
