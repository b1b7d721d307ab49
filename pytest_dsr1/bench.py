"""Measures points on one server: the accuracy of each once, then its performance, each result on disk at once."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_dsr1.accuracy import AccuracyError, AccuracyMeasurement, evaluate, warm_up_imports
from pytest_dsr1.accuracy.documents import AccuracyTask, task_for
from pytest_dsr1.accuracy.tokenizer import Tokenizer, VocabSize, VocabularyError, find_tokenizer, find_vocab_size
from pytest_dsr1.core import accuracy_baselines
from pytest_dsr1.core.baselines import B200Table
from pytest_dsr1.core.config import Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.gate import NOT_RUN, AccuracyBaseline, GateStatus, Verdict, judge
from pytest_dsr1.core.result import AccuracyRecord, LoadRecord, Result, make_result
from pytest_dsr1.core.samples import LoadRun
from pytest_dsr1.core.server import Served, identity_changes
from pytest_dsr1.core.text import first_line
from pytest_dsr1.journal import result_path, samples_path, write_atomically
from pytest_dsr1.load.closed_loop import run_point
from pytest_dsr1.load.prompts import PromptPlan, plan_prompts
from pytest_dsr1.progress import Progress
from pytest_dsr1.resources import baseline_text, baselines_dir
from pytest_dsr1.samples_file import samples_to_bytes
from pytest_dsr1.servers import Server, ServerError

#: How long a server that answered no request may take to answer /health; SGLang itself gives its scheduler 20 s.
PATIENCE_S = 45.0


def published_baselines() -> tuple[AccuracyBaseline, ...]:
    """The project's own accuracy baselines, of all files in `baselines/`."""
    files = sorted(baselines_dir().glob("accuracy_*.json"))
    return tuple(
        one for file in files for one in accuracy_baselines.from_json(file.read_text(encoding="utf-8"), file.name)
    )


def b200_table() -> B200Table:
    name = "b200_nv1126.json"
    return B200Table.from_json(baseline_text(name), name=name)


def given_baselines(path: Path | None) -> tuple[AccuracyBaseline, ...]:
    """Those of `--accuracy-baseline`.

    :raises OSError, ValueError: The file cannot be read, or holds none.
    """
    return () if path is None else accuracy_baselines.from_json(path.read_text(encoding="utf-8"), str(path))


def prompt_plan(
    config: SweepConfig, served: Served, tokenizer: Tokenizer | None = None
) -> tuple[PromptPlan, VocabSize]:
    """The session's prompts, and who said how many ids they are made of.

    :param tokenizer: The one that was found, if any was looked for.
    :raises ValueError: Nobody knows the vocabulary, or its ids do not suffice.
    """
    if tokenizer is None and config.tokenizer is not None and config.vocab_size is None:
        tokenizer = find_tokenizer(config.tokenizer, served)
    vocab = find_vocab_size(config.vocab_size, served, tokenizer)
    return plan_prompts(config, vocab.size), vocab


def accuracy_source(config: SweepConfig, served: Served) -> tuple[AccuracyTask, Tokenizer]:
    """What accuracy is measured on, and whose ids.

    :raises AccuracyError, VocabularyError: Corpus or tokenizer cannot be had.
    """
    task = task_for(reference=served.is_reference, data=config.accuracy_data, limit=config.accuracy_limit)
    return task.within(served.context_length), find_tokenizer(config.tokenizer, served)


@dataclass
class Bench:
    """One session's measurements on one server. Nothing is measured twice, whoever asks.

    :param served: What the server says of itself; asked anew before each point.
    :param folders: Batch folder of each scenario.
    :param progress: Told how far a measurement is.
    :ivar lost: Why the server cannot go on, with the last lines of its log; empty while it can.
    """

    config: SweepConfig
    server: Server
    served: Served
    folders: Mapping[Scenario, Path]
    progress: Progress
    lost: str = ""
    _before: dict[Point, Served] = field(default_factory=dict)
    _accuracies: dict[Point, AccuracyRecord] = field(default_factory=dict)
    _task: AccuracyTask | None = None
    _tokenizer: Tokenizer | None = None
    _plan: tuple[PromptPlan, VocabSize] | None = None
    _b200: B200Table = field(default_factory=b200_table)

    def prepare(self) -> None:
        """Do what takes the client's CPU and needs no server clock: imports, corpus, tokenizer."""
        if self.config.accuracy:
            warm_up_imports()
            with suppress(AccuracyError, VocabularyError):
                # Raised again, and reported, where it is needed.
                self._accuracy_source()

    def accuracy(self, point: Point) -> AccuracyRecord:
        """What the gate says of `point`, measured at its concurrency; written down before anybody judges it."""
        if point not in self._accuracies:
            record = self._measure_accuracy(point)
            self._accuracies[point] = record
            if self.config.accuracy or not record.verdict.opens:
                self._write(point, record, None)
        return self._accuracies[point]

    def _measure_accuracy(self, point: Point) -> AccuracyRecord:
        """Also where accuracy is off: with it a point begins, and with the point the server is asked what it is."""
        try:
            self.served = self._before[point] = self.server.serve(point)
            if not self.config.accuracy:
                return AccuracyRecord(verdict=NOT_RUN)
            task, tokenizer = self._accuracy_source()
            self.server.flush_cache()
            with self.progress.accuracy(point) as report:
                measured = evaluate(task, self.served, tokenizer, point.conc, progress=report)
            changes = identity_changes(self.served, self.server.inspect())
        except (AccuracyError, VocabularyError, ServerError) as error:
            self._look_after(error)
            reason = first_line(self.lost) or f"accuracy: {error}"
            return AccuracyRecord(verdict=Verdict(GateStatus.FAILED, reason))
        baseline = accuracy_baselines.applicable(
            self.served.model,
            measured.task,
            published=published_baselines(),
            given=given_baselines(self.config.accuracy_baseline),
            submit=self.config.mode is Mode.SUBMIT,
        )
        verdict = judge(measured.figures, baseline, model=self.served.model, task=measured.task)
        if changes:
            reason = f"the server changed while accuracy was measured: {'; '.join(changes)}"
            verdict = replace(verdict, status=GateStatus.FAILED, reason=reason)
        elif self.config.record_accuracy_baseline is not None:
            self._record_baseline(self.config.record_accuracy_baseline, measured)
        details = asdict(measured)
        del details["figures"]
        return AccuracyRecord(verdict=verdict, figures=measured.figures, details=details)

    def _look_after(self, error: Exception | None) -> None:
        """Find out whether a measurement went wrong because the server did."""
        self.lost = (
            str(error)
            if isinstance(error, ServerError)
            else self.server.problem(min(PATIENCE_S, self.config.limits.idle_timeout_s))
        )

    def _accuracy_source(self) -> tuple[AccuracyTask, Tokenizer]:
        if self._task is None or self._tokenizer is None:
            self._task, self._tokenizer = accuracy_source(self.config, self.served)
        return self._task, self._tokenizer

    def _record_baseline(self, path: Path, measured: AccuracyMeasurement) -> None:
        known = given_baselines(path) if path.exists() else ()
        source = (
            f"measured {time.strftime('%Y-%m-%d')} at CONC {measured.concurrency} on {self.served.engine} "
            f"with pytest --record-accuracy-baseline, ids by {measured.tokenizer}"
        )
        new = AccuracyBaseline(self.served.model, measured.task, measured.figures, source)
        write_atomically(path, accuracy_baselines.to_json(accuracy_baselines.merged(known, new)))

    def load(self, point: Point) -> LoadRecord:
        """Measure `point` under load. The raw samples are on disk when this returns.

        :raises ServerError: The server's cache cannot be emptied.
        """
        plan, vocab = self._prompt_plan()
        prompts = plan.at(point)
        self.server.flush_cache()
        with self.progress.load(point) as report:
            run = run_point(self.served.url, self.served.model, point, prompts, self.config.limits, on_progress=report)
        samples_file = self._keep_samples(point, run)
        changes = self._changes_since(self._before[point], run)
        return LoadRecord(
            run=run,
            vocab_size=vocab.size,
            vocab_source=vocab.source,
            prompts_sha256=prompts.sha256,
            samples_file=samples_file,
            server_changes=changes,
            server_lost=first_line(self.lost),
        )

    def _changes_since(self, before: Served, run: LoadRun) -> tuple[str, ...]:
        if run.aborted or len(run.completed) < run.num_prompts:
            self._look_after(None)
        if not self.lost:
            try:
                return identity_changes(before, self.server.inspect())
            except ServerError as error:
                self._look_after(error)
        return ()

    def _prompt_plan(self) -> tuple[PromptPlan, VocabSize]:
        if self._plan is None:
            self._plan = prompt_plan(self.config, self.served, self._tokenizer)
        return self._plan

    def _keep_samples(self, point: Point, run: LoadRun) -> tuple[str, str] | None:
        path = samples_path(self.folders[point.scenario], point)
        content = samples_to_bytes(run)
        try:
            write_atomically(path, content)
        except OSError as error:
            # The figures are worth more than the times that they were made of.
            warnings.warn(f"{path} cannot be written ({error.strerror}); the result has no raw samples", stacklevel=2)
            return None
        return path.name, hashlib.sha256(content).hexdigest()

    def record(self, point: Point, load: LoadRecord) -> Result:
        """The result of `point`, written before anybody judges it."""
        return self._write(point, self.accuracy(point), load)

    def _write(self, point: Point, accuracy: AccuracyRecord, load: LoadRecord | None) -> Result:
        path = result_path(self.folders[point.scenario], point)
        result = make_result(
            point,
            self.config,
            self.served,
            accuracy,
            load,
            performance_due=self.config.mode is not Mode.ACC,
            b200=self._b200,
            written=time.time(),
        )
        # Half a result does not replace a whole one: that one stands until its successor is measured.
        if result.status is not None or not _is_finished(path):
            write_atomically(path, result.to_json())
        return result


def _is_finished(path: Path) -> bool:
    try:
        return Result.from_json(path.read_text(encoding="utf-8")).status is not None
    except (OSError, ValueError):
        return False


def served_to_json(served: Served) -> str:
    """For an xdist worker, which measures on the controller's server."""
    return json.dumps(asdict(served), default=str)


def served_from_json(text: str) -> Served:
    fields: dict[str, Any] = json.loads(text)
    return Served(**fields)
