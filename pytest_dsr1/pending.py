"""`pytest --submit-pending DIR`: sends what a batch has not sent, without a session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_dsr1 import options
from pytest_dsr1.core.config import Mode
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.journal import Journal, JournalError
from pytest_dsr1.leaderboard.events import State
from pytest_dsr1.leaderboard.routing import leaderboard_for
from pytest_dsr1.leaderboard.submit import Report, submit_batch
from pytest_dsr1.submission import lines, terms_of

#: What may stand beside it; everything else is about measuring.
_BESIDE = frozenset({"--submit-pending", "--yes", "--leaderboard-url", "--accept-schema", "--submit-timeout"})


def submit_pending(typed: options.Typed, environ: Mapping[str, str], here: Path) -> int:
    """Send, and say what became of it; 0 if nothing is left to be sent.

    :param here: What a relative folder is relative to.
    :raises pytest.UsageError: Something else was typed too, or it is no batch of mode submit.
    """
    if surplus := sorted(name for name in typed if name not in _BESIDE):
        raise pytest.UsageError(f"--submit-pending runs nothing, so {surplus[0]} means nothing beside it; drop one")
    asked = options.parse_options(typed, {})
    try:
        journal = Journal.reopen((here / asked["--submit-pending"]).resolve())
    except JournalError as error:
        raise pytest.UsageError(f"--submit-pending: {error}") from None
    stored = options.parse_options(journal.options, {})
    team = stored.get("--submit-team")
    if journal.batch.mode is not Mode.SUBMIT or team is None:
        raise pytest.UsageError(
            f"--submit-pending: {journal.folder} was measured in mode {journal.batch.mode}, and only submit is sent"
        )
    url = leaderboard_for(journal.batch.scenario, asked.get("--leaderboard-url", stored.get("--leaderboard-url")))
    if url is None:
        print(f"nothing to submit to: there is no leaderboard for ISL/OSL {journal.batch.scenario}")
        return pytest.ExitCode.OK
    config = options.make_config({**stored, **asked}, typed, journal.folder)
    ask = (lambda _question: True) if asked.get("--yes") else _ask
    terms = replace(terms_of(config, environ), reports=journal.folder.parent, ask=ask)
    if is_loopback(url):
        print(f"{url} is on this machine: a rehearsal")
    reports = _locked(journal, lambda: submit_batch(journal, team, url, terms))
    again = f"{asked['--submit-pending']}{f' --leaderboard-url {url}' if '--leaderboard-url' in asked else ''}"
    for line in lines(reports, url, again):
        print(line)
    left = [report for report in reports if report.state not in (State.ACCEPTED, None)]
    return pytest.ExitCode.TESTS_FAILED if left else pytest.ExitCode.OK


def _locked(journal: Journal, send: Callable[[], list[Report]]) -> list[Report]:
    """Send while nobody else measures this batch, or sends it."""
    try:
        journal.lock()
    except JournalError as error:
        raise pytest.UsageError(f"--submit-pending: {error}") from None
    try:
        return send()
    finally:
        journal.unlock()


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        print(f"{question} No: nobody can be asked here; type --yes")
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
