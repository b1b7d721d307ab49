"""Measures points on one server: accuracy, load, and the result of both."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

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
from pytest_dsr1.core.text import duration, first_line
from pytest_dsr1.load.closed_loop import run_point
from pytest_dsr1.load.prompts import PromptPlan, plan_prompts
from pytest_dsr1.servers import Server, ServerError

#: Longest wait, in seconds, for /health after a request failed; SGLang itself gives its scheduler 20 s.
PATIENCE_S = 45.0


#: A context that lasts while a point is measured. Its value is called with texts that describe the progress.
Watch: TypeAlias = Callable[[Point], AbstractContextManager[Callable[[str], None]]]
#: A context that lasts while a load runs. Its mapping, as it is at the end, is in the result under `extra`.
AroundLoad: TypeAlias = Callable[[Point, Served], AbstractContextManager[Mapping[str, object]]]


def describe(phase: str, done: int, total: int, elapsed_s: float, tokens: int | None = None) -> str:
    """Requests done, and, once they are known, tokens per second and time left."""
    words = [f"{phase}: {done:,}/{total:,} requests"]
    if tokens is not None and elapsed_s > 0:
        words.append(f"{tokens / elapsed_s:,.0f} tokens/s")
    if 0 < done < total:
        words.append(f"{duration(elapsed_s * (total - done) / done)} left")
    return ", ".join(words)


def prompt_plan(
    config: SweepConfig, served: Served, tokenizer: Tokenizer | None = None
) -> tuple[PromptPlan, VocabSize]:
    """The session's prompts, and where the number of their token ids is from.

    :param tokenizer: The one that was found, if any was looked for.
    :raises ValueError: The vocabulary is not known, or has too few ids.
    """
    if tokenizer is None and config.tokenizer is not None and config.vocab_size is None:
        tokenizer = find_tokenizer(config.tokenizer, served)
    vocab = find_vocab_size(config.vocab_size, served, tokenizer)
    return plan_prompts(config, vocab.size), vocab


def accuracy_source(config: SweepConfig, served: Served) -> tuple[AccuracyTask, Tokenizer]:
    """The accuracy task, and the tokenizer that makes its token ids.

    :raises AccuracyError, VocabularyError: One of the two is not available.
    """
    task = task_for(reference=served.is_reference, data=config.accuracy_data, limit=config.accuracy_limit)
    return task.within(served.context_length), find_tokenizer(config.tokenizer, served)


@dataclass
class Bench:
    """The measurements of one session on one server; none is made twice.

    :param served: The server's description of itself; requested again before each point.
    :param folder_of: The batch folder of a point.
    :param checks: Checks of a result beside the project's own.
    :ivar lost: Why the server is lost, with the last lines of its log; empty while it is not.
    """

    config: SweepConfig
    server: Server
    served: Served
    folder_of: Callable[[Point], Path]
    watch: Watch
    around_load: AroundLoad
    checks: Iterable[Check] = ()
    lost: str = ""
    _visits: dict[Point, Visit] = field(default_factory=dict)

    def prepare(self) -> None:
        """Load the libraries, the corpus and the tokenizer before anything is timed."""
        if self.config.accuracy:
            warm_up_imports()
            with suppress(AccuracyError, VocabularyError):
                # Raised again, and reported, when accuracy is measured.
                _ = self.accuracy_source

    def visit(self, point: Point) -> Visit:
        """The visit to `point`; it begins at the first call.

        :raises ServerError: The server does not answer.
        """
        if point not in self._visits:
            self.served = self.server.serve(point)
            self._visits[point] = Visit(self, point, self.served)
        return self._visits[point]

    @cached_property
    def accuracy_source(self) -> tuple[AccuracyTask, Tokenizer]:
        """The accuracy task and its tokenizer, see the function `accuracy_source`."""
        return accuracy_source(self.config, self.served)

    @cached_property
    def prompts(self) -> tuple[PromptPlan, VocabSize]:
        """The session's prompts, and where the number of their token ids is from."""
        tokenizer = self.accuracy_source[1] if "accuracy_source" in vars(self) else None
        return prompt_plan(self.config, self.served, tokenizer)

    def look_after(self, error: Exception | None) -> None:
        """Set `lost` if a measurement failed because the server did."""
        if isinstance(error, ServerError):
            self.lost = str(error)
        else:
            self.lost = self.server.problem(min(PATIENCE_S, self.config.limits.idle_timeout_s))


@dataclass
class Visit:
    """The measurements at one point; its methods may be called in any order.

    :param before: The server's description of itself when the visit began.
    """

    bench: Bench
    point: Point
    before: Served
    _accuracy: AccuracyRecord | None = None
    _load: LoadRecord | None = None

    def accuracy(self) -> AccuracyRecord:
        """The verdict of the accuracy gate; the result is written before it is judged."""
        if self._accuracy is None and self.bench.config.accuracy:
            self._accuracy = self._measure_accuracy()
            self.record()
        return self._accuracy or AccuracyRecord(verdict=NOT_RUN)

    def _measure_accuracy(self) -> AccuracyRecord:
        bench, config = self.bench, self.bench.config
        began_s = time.monotonic()
        try:
            task, tokenizer = bench.accuracy_source
            bench.server.flush_cache()
            with bench.watch(self.point) as tell:
                figures, measured = evaluate(
                    task,
                    self.before,
                    tokenizer,
                    self.point.conc,
                    progress=lambda done, total: tell(describe("accuracy", done, total, time.monotonic() - began_s)),
                )
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

    def load(self) -> LoadRecord:
        """Measure the point under load. The raw samples are on the disk when this returns.

        :raises ServerError: The server's cache cannot be emptied.
        """
        if self._load is None:
            self._load = self._measure_load()
        return self._load

    def _measure_load(self) -> LoadRecord:
        bench, point = self.bench, self.point
        plan, vocab = bench.prompts
        plan = plan.with_point(point)
        bench.prompts = plan, vocab
        prompts = plan.at(point)
        bench.server.flush_cache()
        with bench.watch(point) as tell, bench.around_load(point, self.before) as extra:
            run = run_point(
                self.before.url,
                self.before.model,
                point,
                prompts,
                bench.config.limits,
                on_progress=lambda now: tell(describe(now.phase, now.done, now.total, now.elapsed_s, now.tokens)),
            )
        samples_file = self._keep_samples(run)
        changes: tuple[str, ...] = ()
        if run.aborted or len(run.completed) < run.num_prompts:
            bench.look_after(None)
        if not bench.lost:
            try:
                changes = changes_between(self.before.to_fields(), bench.server.inspect().to_fields())
            except ServerError as error:
                bench.look_after(error)
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

    def _keep_samples(self, run: LoadRun) -> SamplesFile | None:
        path = samples_path(self.bench.folder_of(self.point), self.point)
        content = samples_to_bytes(run)
        try:
            write_atomically(path, content)
        except OSError as error:
            # The figures are kept without the raw times.
            warnings.warn(f"{path} cannot be written ({error.strerror}); the result has no raw samples", stacklevel=2)
            return None
        return SamplesFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())

    def record(self) -> Result:
        """Write the result with all that was measured, and return it."""
        bench = self.bench
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
        # A finished result stays until the new one is finished, too.
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
