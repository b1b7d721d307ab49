"""What every process of a sweep knows from its start: the configuration, and what a resumed batch still misses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_dsr1 import options
from pytest_dsr1.core.config import Mode, Point, SweepConfig
from pytest_dsr1.core.summary import Status

if TYPE_CHECKING:
    # Imported where they are used: until a sweep is asked for, a project pays for none of what they need.
    from pytest_dsr1.journal import Journal
    from pytest_dsr1.session import Sweep

#: In every process that takes part in a sweep.
SWEEP_CONFIG = pytest.StashKey[SweepConfig]()
#: (point, test) still to be run; None: all of them.
MISSING = pytest.StashKey[frozenset[tuple[Point, str]] | None]()
#: Only in the process that owns the session.
SWEEP: pytest.StashKey[Sweep] = pytest.StashKey()


def worker_input(config: pytest.Config) -> dict[str, Any] | None:
    """What the controller gave to this process; None if it is no xdist worker."""
    given: Mapping[str, Any] | None = getattr(config, "workerinput", None)
    return None if given is None else dict(given.get("dsr1", {}))


def activate(config: pytest.Config, typed: options.Typed) -> None:
    """Make the sweep that was typed, and register what runs it.

    :raises pytest.UsageError: It cannot be made.
    """
    environ, given = options.environment(), worker_input(config)
    journals = [_reopen(config.invocation_params.dir / folder) for folder in typed.get("--resume", ())]
    if journals:
        values = options.resumed_values(typed, {journal.folder: journal.options for journal in journals})
    else:
        values = options.parse_options(typed, environ, options.ini_options(config))
    sweep_config = options.make_config(values, typed, config.rootpath)
    if given:
        sweep_config = replace(sweep_config, prompt_seed=given["prompt_seed"])
    config.stash[SWEEP_CONFIG] = sweep_config
    by_name = given["by_name"] if given else selects_by_name(config)
    config.stash[MISSING] = None if not journals or by_name else _missing(config, journals)
    if given is None:
        from pytest_dsr1.session import Sweep
        from pytest_dsr1.workers import Controller

        sweep = Sweep(config, sweep_config, values, journals)
        config.stash[SWEEP] = sweep
        config.pluginmanager.register(sweep, "dsr1_sweep")
        config.pluginmanager.register(Controller(config, sweep), "dsr1_controller")
        if sweep_config.mode is Mode.SUBMIT:
            from pytest_dsr1.submission import Submission

            config.pluginmanager.register(Submission(config, sweep, environ), "dsr1_submission")


def _reopen(folder: Path) -> Journal:
    from pytest_dsr1.journal import Journal, JournalError

    try:
        journal = Journal.reopen(folder.resolve())
    except JournalError as error:
        raise pytest.UsageError(f"--resume: {error}") from None
    if not journal.batch.points:
        raise pytest.UsageError(
            f"--resume: {journal.folder} has no points, since its session ended before any was selected; "
            "start a new sweep"
        )
    return journal


def selects_by_name(config: pytest.Config) -> bool:
    """Whether tests were named by who typed, so that a resumed batch measures them again even if it has them."""
    words = [str(word) for word in config.invocation_params.args]
    return any(re.match(r"-[a-zA-Z]*k", word) or "::" in word for word in words)


def _missing(config: pytest.Config, journals: list[Journal]) -> frozenset[tuple[Point, str]]:
    # Who asks for the last failures wants those of the batch too.
    failures_too = config.getoption("lf", False) or config.getoption("failedfirst", False)
    return frozenset(
        (Point(journal.batch.scenario, state.conc), test)
        for journal in journals
        for state in journal.batch.points
        if not state.finished or (failures_too and state.status is Status.FAILED)
        for test in state.tests
    )
