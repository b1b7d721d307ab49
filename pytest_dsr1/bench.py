"""Measures points on one server: accuracy, load, and the result of both."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from pytest_dsr1.accuracy import evaluate, warm_up_imports
from pytest_dsr1.accuracy.documents import AccuracyError, AccuracyTask, task_for
from pytest_dsr1.accuracy.tokenizer import Tokenizer, VocabSize, VocabularyError, find_tokenizer, find_vocab_size
from pytest_dsr1.batch import read_result, result_path, samples_path, write_atomically
from pytest_dsr1.batch.published import b200_table, given_baselines, published_baselines
from pytest_dsr1.batch.samples import samples_to_bytes
from pytest_dsr1.core.config import Mode, Point, SweepConfig
from pytest_dsr1.core.evidence import Check
from pytest_dsr1.core.gate import (
    NOT_RUN,
    AccuracyBaseline,
    AccuracyFigures,
    GateStatus,
    MeasuredTask,
    Verdict,
    baselines_to_json,
    judge,
)
from pytest_dsr1.core.record import AccuracyRecord, LoadRecord, make_result
from pytest_dsr1.core.result import Result, SamplesFile
from pytest_dsr1.core.samples import LoadRun
from pytest_dsr1.core.server import Served, changes_between
from pytest_dsr1.core.text import first_line
from pytest_dsr1.load.closed_loop import run_point
from pytest_dsr1.load.prompts import PromptPlan, plan_prompts
from pytest_dsr1.load.slots import LoadProgress
from pytest_dsr1.servers import Server, ServerError

#: How long a server that answered no request may take to answer /health; SGLang itself gives its scheduler 20 s.
PATIENCE_S = 45.0


class Progress(Protocol):
    """Who is told how far a measurement is."""

    def accuracy(self, point: Point) -> AbstractContextManager[Callable[[int, int], None]]:
        """While accuracy is measured; called with requests done and requests in all."""

    def load(self, point: Point) -> AbstractContextManager[Callable[[LoadProgress], None]]:
        """While the load runs; called with the load generator's own progress."""


class NoProgress:
    """Nobody is told: a worker of xdist shares the terminal of the session."""

    def accuracy(self, point: Point) -> AbstractContextManager[Callable[[int, int], None]]:
        return nullcontext(lambda done, total: None)

    def load(self, point: Point) -> AbstractContextManager[Callable[[LoadProgress], None]]:
        return nullcontext(lambda progress: None)


#: Entered while a load runs; what is in the mapping at the end stands in the result under `extra`.
AroundLoad: TypeAlias = Callable[[Point, Served], AbstractContextManager[Mapping[str, object]]]


def prompt_plan(
    config: SweepConfig, served: Served, tokenizer: Tokenizer | None = None
) -> tuple[PromptPlan, VocabSize]:
    """The session's prompts, and who said how many token ids they are made of.

    :param tokenizer: The one that was found, if any was looked for.
    :raises ValueError: The vocabulary is not known, or has too few ids.
    """
    if tokenizer is None and config.tokenizer is not None and config.vocab_size is None:
        tokenizer = find_tokenizer(config.tokenizer, served)
    vocab = find_vocab_size(config.vocab_size, served, tokenizer)
    return plan_prompts(config, vocab.size), vocab


def accuracy_source(config: SweepConfig, served: Served) -> tuple[AccuracyTask, Tokenizer]:
    """The corpus that accuracy is measured on, and the tokenizer that makes its ids.

    :raises AccuracyError, VocabularyError: One of the two cannot be had.
    """
    task = task_for(reference=served.is_reference, data=config.accuracy_data, limit=config.accuracy_limit)
    return task.within(served.context_length), find_tokenizer(config.tokenizer, served)


@dataclass
class Bench:
    """The measurements of one session on one server; none is made twice.

    :param served: What the server says of itself; asked anew before each point.
    :param folder_of: The batch folder of a point.
    :param checks: Checks of a result beside the project's own.
    :ivar lost: Why the server cannot go on, with the last lines of its log; empty while it can.
    """

    config: SweepConfig
    server: Server
    served: Served
    folder_of: Callable[[Point], Path]
    progress: Progress
    around_load: AroundLoad
    checks: Iterable[Check] = ()
    lost: str = ""
    _visits: dict[Point, Visit] = field(default_factory=dict)

    def prepare(self) -> None:
        """Load the libraries, the corpus and the tokenizer before anything is timed."""
        if self.config.accuracy:
            warm_up_imports()
            with suppress(AccuracyError, VocabularyError):
                # Raised again, and reported, where it is needed.
                _ = self.accuracy_source

    def visit(self, point: Point) -> Visit:
        """The visit to `point`; it begins when it is asked for first.

        :raises ServerError: The server does not answer.
        """
        if point not in self._visits:
            self.served = self.server.serve(point)
            self._visits[point] = Visit(self, point, self.served)
        return self._visits[point]

    @cached_property
    def accuracy_source(self) -> tuple[AccuracyTask, Tokenizer]:
        """See the function of this name."""
        return accuracy_source(self.config, self.served)

    @cached_property
    def prompts(self) -> tuple[PromptPlan, VocabSize]:
        """The session's prompts, and who said how many token ids they are made of."""
        tokenizer = self.accuracy_source[1] if "accuracy_source" in vars(self) else None
        return prompt_plan(self.config, self.served, tokenizer)

    def look_after(self, error: Exception | None) -> None:
        """Find out whether a measurement failed because the server did, and set `lost`."""
        if isinstance(error, ServerError):
            self.lost = str(error)
        else:
            self.lost = self.server.problem(min(PATIENCE_S, self.config.limits.idle_timeout_s))


class Visit:
    """The measurements at one point; its methods may be called in any order.

    :param before: What the server said of itself when the visit began.
    """

    def __init__(self, bench: Bench, point: Point, before: Served) -> None:
        self._bench = bench
        self.point = point
        self.before = before
        self._accuracy: AccuracyRecord | None = None
        self._load: LoadRecord | None = None

    # -- accuracy -----------------------------------------------------------------------------------------------------

    def accuracy(self) -> AccuracyRecord:
        """The verdict of the accuracy gate; the result is written before it is judged."""
        if self._accuracy is None:
            config = self._bench.config
            self._accuracy = self._measure_accuracy() if config.accuracy else AccuracyRecord(verdict=NOT_RUN)
            if config.accuracy:
                self._write()
        return self._accuracy

    def _measure_accuracy(self) -> AccuracyRecord:
        bench, config = self._bench, self._bench.config
        try:
            task, tokenizer = bench.accuracy_source
            bench.server.flush_cache()
            with bench.progress.accuracy(self.point) as report:
                figures, measured = evaluate(task, self.before, tokenizer, self.point.conc, progress=report)
            changes = changes_between(self.before.to_fields(), bench.server.inspect().to_fields())
        except (AccuracyError, VocabularyError, ServerError) as error:
            bench.look_after(error)
            reason = first_line(bench.lost) or f"accuracy: {error}"
            return AccuracyRecord(verdict=Verdict(status=GateStatus.FAILED, reason=reason))
        verdict = judge(
            figures,
            model=self.before.model,
            task=measured.task,
            published=published_baselines(),
            given=given_baselines(config.accuracy_baseline),
            submit=config.mode is Mode.SUBMIT,
        )
        if changes:
            reason = f"the server changed while accuracy was measured: {'; '.join(changes)}"
            verdict = msgspec.structs.replace(verdict, status=GateStatus.FAILED, reason=reason)
        elif config.record_accuracy_baseline is not None:
            _record_baseline(config.record_accuracy_baseline, self.before, figures, measured)
        return AccuracyRecord(verdict=verdict, figures=figures, task=measured)

    # -- load ---------------------------------------------------------------------------------------------------------

    def load(self) -> LoadRecord:
        """Measure the point under load. The raw samples are on the disk when this returns.

        :raises ServerError: The server's cache cannot be emptied.
        """
        if self._load is None:
            self._load = self._measure_load()
        return self._load

    def _measure_load(self) -> LoadRecord:
        bench, point = self._bench, self.point
        plan, vocab = bench.prompts
        plan = plan.with_point(point)
        bench.prompts = plan, vocab
        prompts = plan.at(point)
        bench.server.flush_cache()
        with bench.progress.load(point) as report, bench.around_load(point, self.before) as extra:
            run = run_point(self.before.url, self.before.model, point, prompts, bench.config.limits, on_progress=report)
        samples_file = self._keep_samples(run)
        changes = self._changes_since_begin(run)
        return LoadRecord(
            run=run,
            vocab_size=vocab.size,
            vocab_source=vocab.source,
            prompts_sha256=prompts.sha256,
            samples_file=samples_file,
            server_changes=changes,
            server_lost=first_line(bench.lost),
            extra=extra,
        )

    def _changes_since_begin(self, run: LoadRun) -> tuple[str, ...]:
        bench = self._bench
        if run.aborted or len(run.completed) < run.num_prompts:
            bench.look_after(None)
        if not bench.lost:
            try:
                return changes_between(self.before.to_fields(), bench.server.inspect().to_fields())
            except ServerError as error:
                bench.look_after(error)
        return ()

    def _keep_samples(self, run: LoadRun) -> SamplesFile | None:
        path = samples_path(self._bench.folder_of(self.point), self.point)
        content = samples_to_bytes(run)
        try:
            write_atomically(path, content)
        except OSError as error:
            # The figures are worth more than the times that they were made of.
            warnings.warn(f"{path} cannot be written ({error.strerror}); the result has no raw samples", stacklevel=2)
            return None
        return SamplesFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())

    # -- result -------------------------------------------------------------------------------------------------------

    def record(self) -> Result:
        """Write the result with all that was measured, and return it."""
        return self._write()

    def _write(self) -> Result:
        bench = self._bench
        folder = bench.folder_of(self.point)
        result = make_result(
            self.point,
            bench.config,
            self.before,
            self._accuracy or AccuracyRecord(verdict=NOT_RUN),
            self._load,
            performance_due=bench.config.mode is not Mode.ACC,
            b200=b200_table(),
            written=time.time(),
            more_checks=bench.checks,
        )
        earlier = read_result(folder, self.point)
        # A finished result stands until its successor is finished.
        if result.status is not None or earlier is None or earlier.status is None:
            write_atomically(result_path(folder, self.point), result.to_json())
        return result


def _record_baseline(path: Path, served: Served, figures: AccuracyFigures, measured: MeasuredTask) -> None:
    known = given_baselines(path) if path.exists() else ()
    source = (
        f"measured {time.strftime('%Y-%m-%d')} at CONC {measured.concurrency} on {served.engine} "
        f"with pytest --record-accuracy-baseline, ids by {measured.tokenizer}"
    )
    new = AccuracyBaseline(served.model, measured.task, figures, source)
    write_atomically(path, baselines_to_json([*known, new]))
