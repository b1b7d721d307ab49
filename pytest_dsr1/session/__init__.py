"""One session that measures: created here from the options, and registered.

`sweep` runs it in the process that owns it, `workers` in the processes of xdist, and `terminal` prints what happens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import pytest

from pytest_dsr1 import collection
from pytest_dsr1.batch.journal import Batches, Journal, JournalError
from pytest_dsr1.core.config import Mode, Point, SweepConfig
from pytest_dsr1.core.summary import Status
from pytest_dsr1.options import reading
from pytest_dsr1.session import workers
from pytest_dsr1.session.sweep import Sweep
from pytest_dsr1.session.terminal import LiveLine, Terminal
from pytest_dsr1.submit.plugin import SubmitPlugin, with_hook

#: What the fixtures use: the sweep in the process that owns the session, or a worker.
Session: TypeAlias = Sweep | workers.Worker
SESSION = pytest.StashKey[Session]()


def activate(config: pytest.Config) -> None:
    """Create the sweep that the options ask for.

    :raises pytest.UsageError: The options are wrong, or do not fit together.
    """
    typed = reading.typed_options(config)
    journals = [_reopen(config, folder) for folder in typed.get("--resume", ())]
    if journals:
        values = reading.resumed_values(typed, {journal.folder: journal.options for journal in journals})
    else:
        values = reading.parse(typed, os.environ, reading.ini_options(config))
    sweep = reading.make_config(values, typed, config.rootpath)
    if not sweep.scenarios:
        option = next(name for name in ("--preflight", "--print-launch", "--resume") if name in values)
        raise pytest.UsageError(f"{option}: {collection.HINT} {option}")
    by_name = collection.select_by_keyword(config)
    missing = None if not journals or by_name else _missing(config, journals)
    alone = collection.Alone.needed(config)
    if alone is not None:
        config.pluginmanager.register(alone, "dsr1_alone")
    if not workers.is_worker(config):
        _start_owner(config, sweep, values, journals, missing)
        return
    order = workers.Order.of(config)
    if order is not None:
        sweep = replace(sweep, prompt_seed=order.prompt_seed)
        config.stash[SESSION] = worker = workers.Worker(sweep, order)
        config.pluginmanager.register(worker, "dsr1_worker")
    config.stash[collection.CONFIG] = sweep
    config.pluginmanager.register(collection.SweepTests(sweep, missing), "dsr1_tests")


def activate_late(config: pytest.Config) -> None:
    """Create a session for a user's own tests, which name their points themselves.

    :raises pytest.UsageError: The options are wrong, or do not fit together.
    """
    if workers.is_worker(config) or workers.worker_count(config):
        return  # the fixture dsr1_session reports what is missing
    typed = reading.typed_options(config)
    values = reading.parse(typed, os.environ, reading.ini_options(config))
    sweep = reading.make_config(values, typed, config.rootpath)
    _start_owner(config, sweep, values, [], None).pytest_sessionstart()


def _start_owner(
    config: pytest.Config,
    sweep_config: SweepConfig,
    values: Mapping[str, Any],
    journals: list[Journal],
    missing: frozenset[tuple[Point, str]] | None,
) -> Sweep:
    """Register the plugin objects of the process that owns the session.

    :param missing: The tests that resumed batches still need, see `collection.SweepTests`.
    """
    count = workers.worker_count(config)
    refuse_unverifiable(config)
    workers.refuse_surplus(sweep_config, count)
    config.stash[collection.CONFIG] = sweep_config
    batches = Batches(sweep_config, partial(reading.to_texts, values), journals)
    live = LiveLine(config)
    complete = missing == frozenset()
    sweep = Sweep(config, sweep_config, batches, live, live.watch, complete=complete, workers=count)
    config.stash[SESSION] = sweep
    register = config.pluginmanager.register
    register(collection.SweepTests(sweep_config, missing), "dsr1_tests")
    register(sweep, "dsr1_sweep")
    register(Terminal(config, sweep), "dsr1_terminal")
    if count:
        register(workers.Controller(sweep), "dsr1_controller")
    if sweep_config.mode is Mode.SUBMIT:
        register(SubmitPlugin(sweep, os.environ, with_hook(config)), "dsr1_submission")
    return sweep


#: Options of pytest-benchmark that have no effect under xdist, where it is switched off.
_BENCHMARK_FILES = (
    "benchmark_json",
    "benchmark_save",
    "benchmark_autosave",
    "benchmark_compare",
    "benchmark_compare_fail",
)
#: pytest-benchmark's columns without `ops`: 1 / latency has no meaning for latencies under load.
_COLUMNS = ["min", "median", "mean", "max", "stddev", "rounds"]


def refuse_unverifiable(config: pytest.Config) -> None:
    """Refuse options of other plugins that would leave out a verdict or a file.

    :raises pytest.UsageError: One was typed.
    """
    option = config.option
    if getattr(option, "benchmark_skip", False):
        raise pytest.UsageError(
            "--benchmark-skip skips tests that use pytest-benchmark; the sweep's tests use it after they have "
            "measured, so this would save nothing and give no verdict; drop it, or use --mode acc"
        )
    if getattr(option, "reruns", None):
        raise pytest.UsageError("--reruns: a point is measured once, and a rerun would measure it again; drop it")
    if getattr(option, "dist", "no") == "each":
        raise pytest.UsageError("--dist each runs every test in every worker; use -n auto, one worker for each server")
    typed = [name for name in _BENCHMARK_FILES if getattr(option, name, None)]
    if typed and workers.worker_count(config):
        raise pytest.UsageError(
            f"--{typed[0].replace('_', '-')} with -n: pytest-benchmark is switched off under xdist; drop one of both"
        )
    if getattr(option, "benchmark_columns", _COLUMNS) is None:
        option.benchmark_columns = _COLUMNS


def _reopen(config: pytest.Config, folder: str) -> Journal:
    try:
        journal = Journal.reopen((config.invocation_params.dir / folder).resolve())
    except JournalError as error:
        raise pytest.UsageError(f"--resume: {error}") from None
    if not journal.batch.points:
        raise pytest.UsageError(
            f"--resume: {journal.folder} has no points: its session ended before any was selected; start a new sweep"
        )
    return journal


def _missing(config: pytest.Config, journals: list[Journal]) -> frozenset[tuple[Point, str]]:
    # --lf and --ff select the failed points of the batch, too.
    failures_too = config.getoption("lf", False) or config.getoption("failedfirst", False)
    return frozenset(
        (Point(journal.batch.scenario, state.conc), test)
        for journal in journals
        for state in journal.batch.points
        if not state.finished or (failures_too and state.status is Status.FAILED)
        for test in state.tests
    )
