"""What happens before the first measurement: checks, and the choice of the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_dsr1 import pytest_internals
from pytest_dsr1.accuracy.documents import AccuracyError, heldout_task, wikitext_task
from pytest_dsr1.batch.published import b200_table, given_baselines, published_baselines
from pytest_dsr1.bench import accuracy_source, prompt_plan
from pytest_dsr1.core.config import Engine, Mode, Point, Scenario, SweepConfig
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import duration
from pytest_dsr1.servers import Reporter, ServerError, SilentReporter
from pytest_dsr1.servers.choose import LaunchPlan, choose
from pytest_dsr1.servers.pool import ServerPool

#: Bytes of result, samples and summary, roughly, per generated token; and what else must be free.
_BYTES_PER_TOKEN = 4
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PreflightCheck:
    """One thing that was looked at.

    :param message: What was found; where it did not pass, with the option that mends it.
    """

    passed: bool
    message: str


def checks(config: SweepConfig) -> tuple[PreflightCheck, ...]:
    """Check what needs no server: named files, the corpus, room for the results."""
    return tuple(check for look in (_folder, _baselines, _corpus, _tokenizer) for check in look(config))


def show(
    config: SweepConfig, points: Sequence[Point], more: Sequence[PreflightCheck], say: Callable[[str], None]
) -> bool:
    """Do what --preflight asks for: say what was found and what would be run.

    :param points: The points that would be measured.
    :param more: Checks of plugins.
    :return: Whether everything passed.
    """
    found = (*checks(config), *more, *_launch(config, points))
    for line in lines(config, points, found):
        say(line)
    return all(check.passed for check in found)


def lines(config: SweepConfig, points: Sequence[Point], found: Sequence[PreflightCheck]) -> Iterator[str]:
    """What --preflight prints."""
    for check in found:
        yield f"{'ok    ' if check.passed else 'FAILED'} {check.message}"
    for point in points:
        prompts = config.num_prompts_at(point)
        load = f", {prompts:,} requests of {point.isl:,} + {point.osl:,} tokens" if config.mode is not Mode.ACC else ""
        gate = "accuracy" if config.accuracy else "no accuracy"
        yield f"would run {point.id}: {gate}{load}"
    expected_s = _expected_s(config, points)
    if expected_s is not None:
        yield f"at the speed of the B200 baselines the performance part takes about {duration(expected_s)}"
    elif config.mode is not Mode.ACC:
        yield "how long it takes cannot be said: there is no B200 baseline for these lengths"


def _expected_s(config: SweepConfig, points: Sequence[Point]) -> float | None:
    if config.mode is Mode.ACC:
        return None
    total = 0.0
    for point in points:
        row = b200_table().row(point)
        if row is None:
            return None
        total += config.num_prompts_at(point) / point.conc * row.median_e2e_ms / 1000
    return total


def _folder(config: SweepConfig) -> Iterator[PreflightCheck]:
    existing = next(folder for folder in (config.reports_dir, *config.reports_dir.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield PreflightCheck(
            False, f"--reports-dir: {config.reports_dir} cannot be made, {existing} is not a writable folder"
        )
        return
    tokens = sum(config.num_prompts_at(point) * point.osl for point in config.points)
    needed, free = tokens * _BYTES_PER_TOKEN + _SPARE_BYTES, shutil.disk_usage(existing).free
    yield PreflightCheck(
        free >= needed,
        f"--reports-dir: {free / 2**20:,.0f} MiB free at {existing}, about {needed / 2**20:,.0f} MiB needed",
    )


def _baselines(config: SweepConfig) -> Iterator[PreflightCheck]:
    if not config.accuracy:
        return
    try:
        given = given_baselines(config.accuracy_baseline)
        yield PreflightCheck(True, f"accuracy baselines: {len(published_baselines())} published, {len(given)} given")
    except (OSError, ValueError) as error:
        yield PreflightCheck(False, f"--accuracy-baseline: {error}")
    target = config.record_accuracy_baseline
    if target is not None:
        parent = target.absolute().parent
        problem = "" if parent.is_dir() and os.access(parent, os.W_OK) else f": {parent} is not a writable folder"
        try:
            given_baselines(target if target.exists() else None)
        except (OSError, ValueError) as error:
            problem = f": {error}"
        yield PreflightCheck(not problem, f"--record-accuracy-baseline: {target}{problem}")


def _corpus(config: SweepConfig) -> Iterator[PreflightCheck]:
    if not config.accuracy:
        return
    look: Callable[[], object]
    if config.accuracy_data is not None:
        look, name = (lambda: wikitext_task(config.accuracy_data)), f"--accuracy-data: {config.accuracy_data}"
    elif config.engine is Engine.REFERENCE:
        look, name = heldout_task, "accuracy corpus of the reference engine"
    else:
        return  # which corpus it is depends on who serves
    try:
        look()
        yield PreflightCheck(True, f"{name} is whole")
    except (AccuracyError, OSError) as error:
        yield PreflightCheck(False, f"{name}: {error}")


def _tokenizer(config: SweepConfig) -> Iterator[PreflightCheck]:
    name = config.tokenizer
    if name is not None and name.startswith(("/", ".", "~")):
        folder = Path(name).expanduser()
        yield PreflightCheck(folder.is_dir(), f"--tokenizer: {folder} is {'a' if folder.is_dir() else 'no'} folder")


def _launch(config: SweepConfig, points: Sequence[Point]) -> Iterator[PreflightCheck]:
    """Who would serve; every run finds out for itself when it chooses."""
    if config.server_urls or not points:
        return
    try:
        choice = choose(config, os.environ, config.reports_dir / "servers", SilentReporter())
    except ServerError as error:
        yield PreflightCheck(False, str(error))
        return
    yield PreflightCheck(True, f"server: {choice.why}")
    if choice.plan is None:
        return
    launches = choice.plan.launches(points)
    yield PreflightCheck(True, f"--port: {launches[0][0].port} is free")
    for before, after in pairwise(launches):
        changes = after[0].changes_from(before[0])
        yield PreflightCheck(True, f"the server is restarted for {after[1][0].id}: {changes}")


# -- who serves -------------------------------------------------------------------------------------------------------


def brings_own_server(config: pytest.Config, sweep: SweepConfig, workers: int) -> bool:
    """Whether a conftest brings the server by the fixture dsr1_server.

    :param workers: How many workers of xdist there are.
    :raises pytest.UsageError: There is such a fixture, and it would be ignored.
    """
    found = pytest_internals.modules_with_fixture(config, "dsr1_server")
    if not found:
        return False
    seen = (config.rootpath, config.rootpath / "tests_bench")
    if config.pluginmanager.has_plugin("dsr1_alone") and (
        hidden := next((file for file in found if file.parent not in seen), None)
    ):
        raise pytest.UsageError(
            f"{hidden} defines dsr1_server, which the sweep's own tests do not see: move it to the conftest.py of "
            f"{config.rootpath}, or implement the hook pytest_dsr1_server"
        )
    if workers:
        raise pytest.UsageError(
            f"-n {workers}: {found[0]} defines the fixture dsr1_server, of which every worker would have one; "
            "implement the hook pytest_dsr1_server instead, or drop -n"
        )
    if sweep.server_urls:
        raise pytest.UsageError(
            f"--server-url names a server, and {found[0]} brings one by the fixture dsr1_server; drop one"
        )
    return True


def with_server(config: SweepConfig, served: object, source: str) -> SweepConfig:
    """The configuration, with a server that a user's code brings.

    :param source: The hook or fixture that gave it.
    :raises pytest.UsageError: It is no `Served`.
    """
    if not isinstance(served, Served):
        raise pytest.UsageError(f"{source} gave {served!r}; it must give Served(url=..., model=...) of pytest_dsr1")
    url = served.url.rstrip("/").removesuffix("/v1")
    return replace(config, server_urls=(url,), model=served.model, model_from_environment=False)


def with_server_of_plugins(config: pytest.Config, sweep: SweepConfig) -> SweepConfig:
    """The configuration, with the server that the hook brings, if it brings one."""
    if sweep.server_urls:
        return sweep
    served = config.hook.pytest_dsr1_server(config=config, sweep=sweep)
    return sweep if served is None else with_server(sweep, served, "the hook pytest_dsr1_server")


def choose_server(
    config: pytest.Config,
    sweep: SweepConfig,
    reporter: Reporter,
    *,
    on_served: Callable[[Served, Point | None], None],
    workers: int,
) -> ServerPool:
    """Find who serves, and whether that can be measured.

    :param on_served: Called with each server that answers, and the point that it was asked for.
    :raises ServerError: It cannot.
    """

    def refuse(served: Served | None) -> None:
        reference = served.is_reference if served is not None else pool.choice.is_reference
        if problem := config.hook.pytest_dsr1_refuse_server(
            config=config, why=pool.choice.why, reference=reference, served=served
        ):
            raise ServerError(problem)

    try:
        pool = ServerPool(
            sweep,
            os.environ,
            reporter,
            purpose=f"pytest in {config.invocation_params.dir}",
            on_served=on_served,
            concurrent=max(workers, 1),
        )
        refuse(None)
        # Before anything that takes time: corpus and tokenizer may come from the hub.
        for served in pool.ask_all() if pool.choice.running else ():
            refuse(served)
        require_measurable(sweep, pool, workers)
    except ValueError as error:
        raise ServerError(str(error)) from None
    return pool


def require_measurable(config: SweepConfig, pool: ServerPool, workers: int) -> None:
    """Find wrong now what would otherwise be found wrong after minutes of waiting.

    :raises ServerError, ValueError: The sweep cannot be measured on this server.
    """
    if pool.choice.plan is not None and workers:
        _refuse_restarts(pool.choice.plan, config, workers)
    if not pool.served:
        return
    served = pool.served[0]
    if config.mode is not Mode.ACC:
        for scenario in config.scenarios:
            _require_context(scenario, served)
        if config.points:
            prompt_plan(config, served)
    if config.accuracy and config.points:
        try:
            accuracy_source(config, served)
        except AccuracyError as error:
            raise ServerError(str(error)) from None


def _require_context(scenario: Scenario, served: Served) -> None:
    context, needed = served.context_length, scenario.isl + scenario.osl
    if context is not None and needed > context:
        raise ValueError(
            f"ISL {scenario.isl} + OSL {scenario.osl} = {needed} tokens do not fit into the context "
            f"of {served.model} at {served.url}, {context} tokens; ask for shorter lengths, or serve a longer context"
        )


def _refuse_restarts(plan: LaunchPlan, config: SweepConfig, workers: int) -> None:
    launches = plan.launches(config.points)
    if len(launches) > 1:
        raise ServerError(
            f"-n {workers}: recipe {plan.recipe.name} restarts the server for {launches[1][1][0].id} "
            f"({launches[1][0].changes_from(launches[0][0])}), which a worker cannot ask for; run without -n, or fix "
            "these with --server-arg"
        )
