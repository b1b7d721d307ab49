"""A user's project in a folder of its own, and pytest run there as he runs it.

`Project.run` runs pytest in this process, which takes a quarter of the CPU time that a new process takes. Use
`Project.run_process` or `Project.start` where the test is about a process: a signal, a crash, or a start-up.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

#: No sweep of these tests takes as long, however busy the machine is; one that does hangs.
HANG_S = 240.0
#: Shufflers are installed for tests that ask for them by name. No test is about Hypothesis or AnyIO.
WITHOUT_PLUGINS = ("-p", "no:randomly", "-p", "no:random_order", "-p", "no:hypothesispytest", "-p", "no:anyio")
#: Of these the outer session has its own, which sees what the inner one leaves behind. As the outer session is told
#: to, it reports such an error as a failure.
WITHOUT_PLUGINS_IN_PROCESS = ("-p", "no:faulthandler", "-p", "no:unraisableexception", "-p", "no:threadexception")


class Project:
    """A folder with an ini file, an environment, and pytest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MODEL", "PORT", "TP", "TEAM_NAME_ENV") and not name.startswith(("PYTEST_", "COV_"))
        } | {"COLUMNS": "80"}

    def run(self, *args: str) -> Outcome:
        """Run pytest to its end, in this process.

        Libraries stay imported between two runs: an environment variable that a library reads at its import needs
        `run_process`.
        """
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        interruption = _Interruption()
        with (
            _process_state_kept(self.folder, self.environment, output),
            _interrupted_after(HANG_S) as hangs,
        ):
            status = pytest.main([*WITHOUT_PLUGINS, *WITHOUT_PLUGINS_IN_PROCESS, *args], plugins=[interruption])
        outcome = Outcome(int(status), output.buffer.getvalue().decode())
        assert not hangs, f"pytest {' '.join(args)}: not ended within {HANG_S:g} s: {outcome}"
        if interruption.by_user:
            raise KeyboardInterrupt
        return outcome

    def run_process(self, *args: str) -> Outcome:
        """Run pytest to its end, in a process of its own."""
        process = self.start(*args)
        output, _ = process.communicate(timeout=HANG_S)
        return Outcome(process.returncode, output)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start pytest in a process of its own and return at once."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *WITHOUT_PLUGINS, *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal's Ctrl+C reaches a process group; this process is to have its own.
            start_new_session=True,
        )

    def write(self, name: str, *lines: str) -> Path:
        """Write a file of the project, in a folder that is made if need be."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    @property
    def batch(self) -> Path:
        """The newest batch folder."""
        return (self.folder / "reports" / "latest").resolve()

    @property
    def batches(self) -> list[Path]:
        """All batch folders, oldest first."""
        return sorted((self.folder / "reports").glob("batch_*"))

    def summary(self) -> str:
        """The text of the newest batch's summary."""
        return (self.batch / "summary.txt").read_text(encoding="utf-8")

    def lines(self) -> list[str]:
        """The summary's lines of points."""
        return [line for line in self.summary().splitlines() if line.startswith("[")]


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended."""

    status: int
    output: str

    def __repr__(self) -> str:
        return f"exit status {self.status}\n{self.output}"


class _Interruption:
    """A plugin of the inner session: pytest turns Ctrl+C into an exit status, which the outer session must not miss."""

    by_user = False

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.by_user = type(excinfo.value) is KeyboardInterrupt


@contextlib.contextmanager
def _interrupted_after(timeout_s: float) -> Iterator[list[int]]:
    """Interrupt the block as Ctrl+C does if it takes longer; the list is then no longer empty."""
    interrupted: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield interrupted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _process_state_kept(folder: Path, environment: dict[str, str], output: io.TextIOWrapper) -> Iterator[None]:
    """Make this process look like a new one in `folder`; afterwards, put everything back as it was."""
    old_folder, old_environment = Path.cwd(), dict(os.environ)
    old_path, old_modules = list(sys.path), dict(sys.modules)
    old_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    old_logging, old_stdin = (list(root.handlers), root.level), sys.stdin
    # Folders that were made a moment ago may be missing from the import system's caches.
    importlib.invalidate_caches()
    os.chdir(folder)
    _set_environment(environment)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            Path(os.devnull).open(encoding="utf-8") as nothing,
            warnings.catch_warnings(),
        ):
            sys.stdin = nothing
            _set_default_warnings()
            yield
    finally:
        sys.stdin = old_stdin
        os.chdir(old_folder)
        _set_environment(old_environment)
        sys.path[:] = old_path
        _restore_modules(folder, old_modules)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        root.handlers[:], root.level = old_logging


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _set_default_warnings() -> None:
    """Set the filters of a new interpreter: the outer session's `-W error` is none of the user's."""
    warnings.resetwarnings()
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category, append=True)


def _restore_modules(folder: Path, modules: dict[str, ModuleType]) -> None:
    """Forget the modules of `folder` alone, and bring back what they replaced; a library is imported only once."""
    own = [
        name
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None)) is not None and Path(file).is_relative_to(folder)
    ]
    for name in own:
        del sys.modules[name]
    for name, module in modules.items():
        sys.modules.setdefault(name, module)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Look again and again until `condition` holds; not so often that looking takes the time that is waited for."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.02)
