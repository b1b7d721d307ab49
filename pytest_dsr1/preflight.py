"""What can be found wrong before a server is started, and how long a sweep will take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pytest_dsr1.core.config import Engine, Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import duration
from pytest_dsr1.servers import ServerError, SilentReporter
from pytest_dsr1.servers.choose import LaunchPlan, choose
from pytest_dsr1.servers.pool import ServerPool
from pytest_dsr1.servers.recipe import RecipeError

#: Bytes of result, samples and summary, roughly, per generated token; and what else must be free.
_BYTES_PER_TOKEN = 4
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    passed: bool
    message: str


def checks(config: SweepConfig) -> tuple[Check, ...]:
    """Look at all that needs no server: files that were named, corpus and its hash, room for the results."""
    return tuple(check for look in (_folder, _baselines, _corpus, _tokenizer) for check in look(config))


def show(config: SweepConfig, points: Sequence[Point], say: Callable[[str], None]) -> str:
    """What --preflight does.

    :return: Why the sweep cannot be run; empty if nothing is against it.
    """
    found = (*checks(config), *_launch(config, points))
    for line in lines(config, points, found):
        say(line)
    return "" if all(check.passed for check in found) else "preflight failed"


def lines(config: SweepConfig, points: Sequence[Point], found: Sequence[Check]) -> Iterator[str]:
    """What --preflight prints.

    :param points: Those that would be measured.
    """
    for check in found:
        yield f"{'ok    ' if check.passed else 'FAILED'} {check.message}"
    for point in points:
        prompts = config.num_prompts_at(point)
        load = f", {prompts:,} requests of {point.isl:,} + {point.osl:,} tokens" if config.mode is not Mode.ACC else ""
        gate = "accuracy" if config.accuracy else "no accuracy"
        yield f"would run {point.id}: {gate}{load}"
    guess = _expected_s(config, points)
    if guess is not None:
        yield f"at the speed of the B200 baselines the performance part takes about {duration(guess)}"
    elif config.mode is not Mode.ACC:
        yield "how long it takes cannot be said: there is no B200 baseline for these lengths"


def require_context(scenario: Scenario, served: Served) -> None:
    """:raises ValueError: The server's context is too short for the lengths."""
    context = served.context_length
    needed = scenario.isl + scenario.osl
    if context is not None and needed > context:
        raise ValueError(
            f"ISL {scenario.isl} + OSL {scenario.osl} = {needed} tokens do not fit into the context "
            f"of {served.model} at {served.url}, {context} tokens; ask for shorter lengths, or serve a longer context"
        )


def _expected_s(config: SweepConfig, points: Sequence[Point]) -> float | None:
    from pytest_dsr1.bench import b200_table

    if config.mode is Mode.ACC:
        return None
    table, total = b200_table(), 0.0
    for point in points:
        row = table.row(point)
        if row is None:
            return None
        total += config.num_prompts_at(point) / point.conc * row.median_e2e_ms / 1000
    return total


def _folder(config: SweepConfig) -> Iterator[Check]:
    existing = next(folder for folder in (config.reports_dir, *config.reports_dir.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Check(False, f"--reports-dir: {config.reports_dir} cannot be made, {existing} is not a writable folder")
        return
    tokens = sum(config.num_prompts_at(point) * point.osl for point in config.points)
    needed, free = tokens * _BYTES_PER_TOKEN + _SPARE_BYTES, shutil.disk_usage(existing).free
    yield Check(
        free >= needed,
        f"--reports-dir: {free / 2**20:,.0f} MiB free at {existing}, about {needed / 2**20:,.0f} MiB needed",
    )


def _baselines(config: SweepConfig) -> Iterator[Check]:
    from pytest_dsr1.bench import given_baselines, published_baselines

    if not config.accuracy:
        return
    try:
        given = given_baselines(config.accuracy_baseline)
        yield Check(True, f"accuracy baselines: {len(published_baselines())} published, {len(given)} given")
    except (OSError, ValueError) as error:
        yield Check(False, f"--accuracy-baseline: {error}")
    target = config.record_accuracy_baseline
    if target is not None:
        parent = target.absolute().parent
        problem = "" if parent.is_dir() and os.access(parent, os.W_OK) else f": {parent} is not a writable folder"
        try:
            given_baselines(target if target.exists() else None)
        except (OSError, ValueError) as error:
            problem = f": {error}"
        yield Check(not problem, f"--record-accuracy-baseline: {target}{problem}")


def _corpus(config: SweepConfig) -> Iterator[Check]:
    from pytest_dsr1.accuracy import AccuracyError
    from pytest_dsr1.accuracy.documents import heldout_task, wikitext_task

    if not config.accuracy:
        return
    look: Callable[[], object]
    if config.accuracy_data is not None:
        look, name = (lambda: wikitext_task(config.accuracy_data)), f"--accuracy-data: {config.accuracy_data}"
    elif config.engine is Engine.REFERENCE:
        look, name = heldout_task, "accuracy corpus of the reference engine"
    else:
        return  # who serves, and so which corpus it is, is known only when the server answers
    try:
        look()
        yield Check(True, f"{name} is whole")
    except (AccuracyError, OSError) as error:
        yield Check(False, f"{name}: {error}")


def _launch(config: SweepConfig, points: Sequence[Point]) -> Iterator[Check]:
    """Who would serve; every run finds out for itself when it chooses."""
    if config.server_urls:
        return
    try:
        choice = choose(config, os.environ, config.reports_dir / "servers", SilentReporter())
    except (ServerError, RecipeError) as error:
        yield Check(False, str(error))
        return
    yield Check(True, f"server: {choice.why}")
    if choice.plan is None:
        return
    launches = choice.plan.launches(points)
    yield Check(True, f"--port: {launches[0][0].port} is free")
    for before, after in pairwise(launches):
        changes = after[0].changes_from(before[0])
        yield Check(True, f"the server is started anew for {after[1][0].id}: {changes}")


def _tokenizer(config: SweepConfig) -> Iterator[Check]:
    name = config.tokenizer
    if name is None or not name.startswith(("/", ".", "~")):
        return
    folder = Path(name).expanduser()
    yield Check(folder.is_dir(), f"--tokenizer: {folder} is {'a' if folder.is_dir() else 'no'} folder")


def require_measurable(config: SweepConfig, pool: ServerPool, workers: int) -> None:
    """Find out now what would otherwise be found wrong after minutes of waiting.

    :raises ServerError, ValueError: The sweep cannot be measured on this server, or not submitted.
    """
    _require_submittable(config, pool, reference=pool.is_reference)
    if pool.plan is not None and workers:
        _refuse_restarts(pool.plan, config, workers)
    if pool.running:
        served = pool.ask_all()[0]
        _require_submittable(config, pool, reference=served.is_reference, gpus_known=served.num_gpus is not None)
        _require_inputs(config, served)


def _require_submittable(config: SweepConfig, pool: ServerPool, *, reference: bool, gpus_known: bool = True) -> None:
    from pytest_dsr1.leaderboard.eligibility import server_problem

    if config.mode is Mode.SUBMIT and (
        problem := server_problem(config, pool.why, reference=reference, gpus_known=gpus_known)
    ):
        raise ServerError(problem)


def _refuse_restarts(plan: LaunchPlan, config: SweepConfig, workers: int) -> None:
    launches = plan.launches(config.points)
    if len(launches) > 1:
        raise ServerError(
            f"-n {workers}: recipe {plan.recipe.name} starts the server anew for {launches[1][1][0].id} "
            f"({launches[1][0].changes_from(launches[0][0])}), which a worker cannot ask for; run without -n, or fix "
            "these with --server-arg"
        )


def _require_inputs(config: SweepConfig, served: Served) -> None:
    from pytest_dsr1.accuracy import AccuracyError
    from pytest_dsr1.bench import accuracy_source, endpoint_of, prompt_plan

    if config.mode is not Mode.ACC:
        for scenario in config.scenarios:
            require_context(scenario, served)
        prompt_plan(config, endpoint_of(served))
    if config.accuracy:
        try:
            accuracy_source(config, served)
        except AccuracyError as error:
            raise ServerError(str(error)) from None
