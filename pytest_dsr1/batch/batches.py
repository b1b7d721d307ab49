"""The batch folders of one session, one for each pair of lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_dsr1.batch.journal import Journal, JournalError
from pytest_dsr1.core.config import Point, Scenario, SweepConfig
from pytest_dsr1.core.ledger import Ledger, PointEnd
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.summary import Status


class Batches:
    """The journals of a session.

    :param texts: The options of a scenario's batch, as a resumed run needs them.
    :param resumed: The batches that are completed; none: new ones are made.
    """

    def __init__(
        self, config: SweepConfig, texts: Callable[[Scenario], Mapping[str, Any]], resumed: Sequence[Journal]
    ) -> None:
        self._config = config
        self._texts = texts
        self._journals = {journal.batch.scenario: journal for journal in resumed}
        self._served: Served | None = None

    def __iter__(self) -> Iterator[Journal]:
        return iter(self._journals.values())

    @property
    def folders(self) -> dict[Scenario, Path]:
        """The folder of each scenario."""
        return {scenario: journal.folder for scenario, journal in self._journals.items()}

    def folder_of(self, point: Point) -> Path:
        """The folder of a point's batch."""
        return self._journals[point.scenario].folder

    def open(self) -> None:
        """Lock the batches that are resumed, or make new ones.

        :raises JournalError: Another session measures one.
        :raises OSError: A folder cannot be made.
        """
        for journal in self._journals.values():
            journal.lock()
        for scenario in self._config.scenarios:
            self.of(scenario)

    def of(self, scenario: Scenario) -> Journal:
        """The journal of a scenario, made where there is none.

        :raises OSError: Its folder cannot be made.
        """
        if scenario not in self._journals:
            config = self._config
            journal = Journal.create(config.reports_dir, scenario, config.mode, self._texts(scenario))
            journal.lock()
            if not config.accuracy:
                journal.note("accuracy off: nobody checked that it is the model")
            if self._served is not None:
                journal.serve(self._served.engine, self._served.model)
            self._journals[scenario] = journal
        return self._journals[scenario]

    def serve(self, served: Served) -> None:
        """Keep with every batch what it is measured on.

        :raises JournalError: A resumed batch was begun on another engine or model.
        """
        self._served = served
        for journal in self._journals.values():
            journal.serve(served.engine, served.model)

    def select(self, ledger: Ledger) -> None:
        """Put the points that have tests into the batches; a resumed batch keeps the points that it has."""
        for scenario, journal in self._journals.items():
            names = {state.conc: state.tests for state in journal.batch.points}
            due = [point for point in self._config.points if point.scenario == scenario]
            for point in due:
                if tests := ledger.tests_of(point):
                    names.setdefault(point.conc, tests)
            journal.select({point.conc: names[point.conc] for point in due if point.conc in names})

    def start(self, points: Iterable[Point]) -> None:
        """Say that points are being measured."""
        for point in points:
            self._journals[point.scenario].start(point.conc)

    def end(self, end: PointEnd) -> Journal:
        """Say what has become of a point."""
        journal = self._journals[end.point.scenario]
        journal.end(end.point.conc, end.status, end.reason, lost=end.lost)
        return journal

    def discard_empty(self) -> None:
        """Remove the folders to which no point was selected."""
        self._journals = {
            scenario: journal for scenario, journal in self._journals.items() if not journal.discard_if_empty()
        }

    def close(self) -> None:
        """Let other sessions resume the batches; remove those to which no point was selected."""
        self.discard_empty()
        for journal in self:
            journal.unlock()

    @property
    def any_failed(self) -> bool:
        """Whether a point failed, in this session or before it was resumed."""
        return any(journal.batch.count(Status.FAILED) for journal in self)


__all__ = ["Batches", "JournalError"]
