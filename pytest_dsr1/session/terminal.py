"""What a sweep says on the terminal: header, live line, closing table."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter

import pytest

from pytest_dsr1 import preflight
from pytest_dsr1.batch import read_result
from pytest_dsr1.collection import HINT, point_of
from pytest_dsr1.core.config import Mode, Point, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.summary import Batch, Status
from pytest_dsr1.servers.choose import print_launch
from pytest_dsr1.session.sweep import Sweep

#: Seconds between two updates of the live line, and between two lines if the output is not a terminal.
LIVE_PERIOD_S = 0.2
PLAIN_PERIOD_S = 60.0


class LiveLine:
    """Progress of a measurement or a start: live on a terminal, else a line a minute."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._live = False
        self._active = False
        self._due_s = 0.0

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._end()
        self._write_plain(text)

    def progress(self, text: str, name: str = "") -> None:
        """Show the progress of something; the next call replaces the text.

        :param name: Printed before the text if the output is not a terminal.
        """
        now_s = time.monotonic()
        if not self._active:
            self._active = True
            # Inside a test sys.stdout is pytest's, unless capturing is off.
            with self._uncaptured():
                # Without pytest's reporter there is no test's name on the line.
                self._live = sys.stdout.isatty() and self._config.pluginmanager.has_plugin("terminalreporter")
            self._due_s = now_s if self._live else now_s + PLAIN_PERIOD_S
        if now_s < self._due_s:
            return
        if self._live:
            self._due_s = now_s + LIVE_PERIOD_S
            self._write_live(text)
        else:
            self._due_s = now_s + PLAIN_PERIOD_S
            self._write_plain(f"{name}{text}")

    @contextmanager
    def watch(self, point: Point) -> Iterator[Callable[[str], None]]:
        """Show the progress of a point's measurement, see `bench.Watch`."""
        try:
            yield lambda text: self.progress(text, f"{point.id} ")
        finally:
            self._end()

    def _end(self) -> None:
        if self._active and self._live:
            self._write_live("")
        self._active = False

    def _write_live(self, text: str) -> None:
        """Write after the running test's name, where its outcome replaces the text."""
        writer = self._config.get_terminal_writer()
        with self._uncaptured():
            room = max(writer.fullwidth - writer.width_of_current_line - 2, 0)
            sys.stdout.write(f"\x1b7 {text[:room]}\x1b[K\x1b8")
            sys.stdout.flush()

    def _write_plain(self, text: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        with self._uncaptured():
            reporter.ensure_newline()
            reporter.write_line(text)

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return nullcontext() if capture is None else capture.global_and_fixture_disabled()


class Terminal:
    """The plugin object that writes the header and the closing lines of a sweep."""

    def __init__(self, config: pytest.Config, sweep: Sweep) -> None:
        self._config = config
        self._sweep = sweep

    def pytest_report_header(self) -> list[str]:
        pool = self._sweep.pool
        why, served = (pool.choice.why, pool.served[:1]) if pool is not None else ("", ())
        lines = header_lines(self._sweep.config, why, served)
        for folder in sorted(self._sweep.batches.folders.values()):
            root = self._config.rootpath
            lines.append(f"results in {folder.relative_to(root) if folder.is_relative_to(root) else folder}")
        return [f"dsr1: {line}" for line in lines]

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Do what --preflight and --print-launch ask for, instead of running tests."""
        config = self._sweep.config
        if not (config.preflight or config.print_launch):
            return None
        say = self._sweep.reporter.line
        selected = {point_of(item) for item in session.items}
        points = [point for point in config.points if point in selected]
        if config.print_launch:
            if problem := print_launch(config, points, say):
                raise pytest.UsageError(problem)
        elif not preflight.show(preflight.checks(self._config, config), config, points, say):
            say("preflight failed")
            # pytest counts its own failures here: exit status 1.
            session.testsfailed = 1
        return True

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        sweep = self._sweep
        if sweep.measured_nothing:
            remedy = "" if sweep.journals else f"; without a path pytest runs it: {HINT.partition(': ')[2]}"
            terminalreporter.write_line(f"dsr1: no test of the sweep was run{remedy}")
        if not sweep.journals:
            return
        terminalreporter.section("dsr1")
        again = " -n auto" if len(sweep.config.server_urls) > 1 else ""
        if not self._config.pluginmanager.has_plugin("dsr1_alone"):
            again += f" {shlex.join(self._config.args)}"
        lines = []
        for journal in sweep.journals:
            batch = journal.batch
            results = [read_result(journal.folder, Point(batch.scenario, state.conc)) for state in batch.points]
            lines += closing_lines(batch, results, sweep.shown(journal.folder), again)
        lines += sweep.cause.splitlines()
        if sweep.pool is not None:
            lines += sweep.pool.closing_lines(interrupted=sweep.stopped_by_user)
        for line in lines:
            terminalreporter.write_line(line)


def header_lines(config: SweepConfig, why: str, served: Sequence[Served]) -> list[str]:
    """What will be measured, on which server, with how many requests and tokens.

    :param why: Which server was chosen, and why; empty if none was.
    :param served: The server, if it has answered.
    """
    points = config.points
    lengths = "; ".join(f"ISL {scenario.isl}, OSL {scenario.osl}" for scenario in config.scenarios)
    what = {
        Mode.ACC: "accuracy only",
        Mode.PERF: "accuracy gate, then performance" if config.accuracy else "performance only (accuracy off)",
        Mode.SUBMIT: "accuracy gate, performance, submission",
    }[config.mode]
    lines = []
    if points:
        lines.append(f"{lengths}, CONC {', '.join(map(str, config.concurrencies))}: {what}")
    if why:
        lines.append(f"served by {why}")
    for one in served:
        gpus = {"server": "", "assumed": ", assumed from --tp", "unknown": ""}[one.num_gpus_source]
        count = f"{one.num_gpus} GPUs{gpus}" if one.num_gpus else "number of GPUs unknown: no per-GPU figures"
        lines.append(f"model {one.model} ({count})")
    if points and config.mode is not Mode.ACC:
        requests = sum(config.num_prompts_at(point) for point in points)
        tokens_in = sum(config.num_prompts_at(point) * point.isl for point in points)
        tokens_out = sum(config.num_prompts_at(point) * point.osl for point in points)
        warmups = sum(config.num_warmups_at(point) for point in points)
        upto = "up to " if config.random_range_ratio < 1 else ""
        lines.append(
            f"{requests:,} requests (and {warmups:,} to warm up), {upto}{tokens_in:,} tokens in, "
            f"{upto}{tokens_out:,} out; prompt seed {config.prompt_seed}"
        )
    return lines


#: Columns of the closing table: heading, width, format of the figure, and how it is read from a result.
_COLUMNS: tuple[tuple[str, int, str, Callable[[Result], float | None]], ...] = (
    ("tokens/s", 10, ",.1f", attrgetter("total_token_throughput")),
    ("out tok/s", 10, ",.1f", attrgetter("output_throughput")),
    ("/GPU", 9, ",.1f", attrgetter("tput_per_gpu")),
    ("TTFT ms", 9, ",.2f", attrgetter("median_ttft_ms")),
    ("TPOT ms", 8, ",.3f", attrgetter("median_tpot_ms")),
    ("E2E ms", 10, ",.1f", attrgetter("median_e2el_ms")),
    ("tok/s/user", 11, ",.2f", attrgetter("interactivity")),
    ("vs B200 /GPU", 13, ".4f", attrgetter("tput_per_gpu_ratio_vs_b200_1126")),
    ("vs B200 E2E", 12, ".4f", attrgetter("median_e2e_ratio_vs_b200_1126")),
    ("word ppl", 9, ".4f", lambda result: result.accuracy.word_perplexity if result.accuracy else None),
)


def closing_lines(batch: Batch, results: Sequence[Result | None], folder: str, again: str = "") -> list[str]:
    """A table of medians, the reasons of failures, and the path of the summary.

    :param results: Of the batch's points, in their order.
    :param again: What is typed after --resume and the folder.
    """
    lines = [f"ISL {batch.scenario.isl}, OSL {batch.scenario.osl} (latencies are medians)"]
    lines.append(" ".join([" CONC", f"{'result':<11}", *(f"{name:>{width}}" for name, width, *_ in _COLUMNS)]))
    for state, result in zip(batch.points, results, strict=True):
        measured = result if state.status is not Status.NOT_RUN else None
        cells = [f"{state.conc:>5}", f"{state.status:<11}"]
        for _, width, form, get in _COLUMNS:
            figure = get(measured) if measured is not None else None
            cells.append(f"{'-' if figure is None else format(figure, form):>{width}}")
        lines.append(" ".join(cells))
    lines += [
        f"CONC {state.conc}: {state.reason}" for state in batch.points if state.status is Status.FAILED and state.reason
    ]
    for state, result in zip(batch.points, results, strict=True):
        warnings = [one for one in result.findings if one.severity == "warn"] if result is not None else []
        lines += [f"CONC {state.conc}: warning {one.check}: {one.message}" for one in warnings]
    lines.append(f"{folder}/summary.txt: {batch.count(Status.PASSED)} of {len(batch.points)} passed")
    # A batch without a finished point need not be resumed: a new sweep does the same.
    if any(state.finished for state in batch.points) and not all(state.finished for state in batch.points):
        lines.append(f"complete it with: pytest --resume {folder}{again}")
    return lines
