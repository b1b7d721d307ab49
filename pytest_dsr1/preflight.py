"""What happens before the first measurement: checks, and the choice of the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import pytest

from pytest_dsr1 import pytest_internals
from pytest_dsr1.accuracy.documents import AccuracyError, heldout_task, wikitext_task
from pytest_dsr1.batch.published import b200_table, given_baselines, published_baselines
from pytest_dsr1.bench import accuracy_source, prompt_plan
from pytest_dsr1.core.config import Engine, Mode, Point, SweepConfig
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.text import duration
from pytest_dsr1.servers import Reporter, ServerError, SilentReporter
from pytest_dsr1.servers.choose import choose
from pytest_dsr1.servers.pool import ServerPool

#: About how many bytes of result, samples and summary there are per generated token, and how many more must be free.
_BYTES_PER_TOKEN = 4
_SPARE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PreflightCheck:
    """The outcome of one check.

    :param message: What was found; if it did not pass, with the option that fixes it.
    """

    passed: bool
    message: str


def checks(config: pytest.Config, sweep: SweepConfig) -> tuple[PreflightCheck, ...]:
    """Check what needs no server: files, the corpus, disk space, plugins' checks."""
    own = (check for look in (_folder, _baselines, _corpus, _tokenizer) for check in look(sweep))
    of_plugins = config.hook.pytest_dsr1_preflight(config=config, sweep=sweep)
    return (*own, *chain.from_iterable(of_plugins))


def show(
    found: Sequence[PreflightCheck], config: SweepConfig, points: Sequence[Point], say: Callable[[str], None]
) -> bool:
    """Do what --preflight asks for: say what was found and what would be run.

    :param found: The checks that need no server.
    :param points: The points that would be measured.
    :return: Whether everything passed.
    """
    found = (*found, *_launch(config, points))
    for check in found:
        say(f"{'ok    ' if check.passed else 'FAILED'} {check.message}")
    performance = config.mode is not Mode.ACC
    for point in points:
        prompts = config.num_prompts_at(point)
        load = f", {prompts:,} requests of {point.isl:,} + {point.osl:,} tokens" if performance else ""
        say(f"would run {point.id}: {'accuracy' if config.accuracy else 'no accuracy'}{load}")
    rows = [(point, row) for point in points if (row := b200_table().row(point)) is not None]
    if performance and len(rows) == len(points):
        expected_s = sum(config.num_prompts_at(point) / point.conc * row.median_e2e_ms / 1000 for point, row in rows)
        say(f"at the speed of the B200 baselines the performance part takes about {duration(expected_s)}")
    elif performance:
        say("the duration is not known: there is no B200 baseline for these lengths")
    return all(check.passed for check in found)


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
    name = f"--accuracy-data: {config.accuracy_data}"
    if config.accuracy_data is None:
        if config.engine is not Engine.REFERENCE:
            return  # the server decides which corpus it is
        name = "accuracy corpus of the reference engine"
    try:
        heldout_task() if config.accuracy_data is None else wikitext_task(config.accuracy_data)
        yield PreflightCheck(True, f"{name} is complete")
    except (AccuracyError, OSError) as error:
        yield PreflightCheck(False, f"{name}: {error}")


def _tokenizer(config: SweepConfig) -> Iterator[PreflightCheck]:
    name = config.tokenizer
    if name is not None and name.startswith(("/", ".", "~")):
        folder = Path(name).expanduser()
        yield PreflightCheck(folder.is_dir(), f"--tokenizer: {folder} is {'a' if folder.is_dir() else 'no'} folder")


def _launch(config: SweepConfig, points: Sequence[Point]) -> Iterator[PreflightCheck]:
    """Which server would be used. Every run chooses again."""
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
    """Whether a conftest provides the server by the fixture dsr1_server.

    :param workers: Number of xdist workers.
    :raises pytest.UsageError: There is such a fixture, and it would be ignored.
    """
    found = pytest_internals.modules_with_fixture(config, "dsr1_server")
    if not found:
        return False
    seen = (config.rootpath, config.rootpath / "tests_bench")
    hidden = next((file for file in found if file.parent not in seen), None)
    if hidden is not None and config.pluginmanager.has_plugin("dsr1_alone"):
        raise pytest.UsageError(
            f"{hidden} defines dsr1_server, which the sweep's own tests cannot use: move it to the conftest.py of "
            f"{config.rootpath}, or implement the hook pytest_dsr1_server"
        )
    if workers:
        raise pytest.UsageError(
            f"-n {workers}: {found[0]} defines the fixture dsr1_server, and each worker would have its own; "
            "implement the hook pytest_dsr1_server instead, or drop -n"
        )
    if sweep.server_urls:
        raise pytest.UsageError(
            f"--server-url names a server, and {found[0]} provides one by the fixture dsr1_server; drop one"
        )
    return True


def with_server(config: SweepConfig, served: object, source: str) -> SweepConfig:
    """The configuration, with a server that a user's code provides.

    :param source: The hook or fixture that gave it.
    :raises pytest.UsageError: It is not a `Served`.
    """
    if not isinstance(served, Served):
        raise pytest.UsageError(f"{source} gave {served!r}; it must give Served(url=..., model=...) of pytest_dsr1")
    url = served.url.rstrip("/").removesuffix("/v1")
    return replace(config, server_urls=(url,), model=served.model, model_from_environment=False)


def choose_server(
    config: pytest.Config,
    sweep: SweepConfig,
    reporter: Reporter,
    *,
    on_served: Callable[[Served, Point | None], None],
    workers: int,
) -> ServerPool:
    """Choose the server, and check that it can be measured.

    It is the one of --server-url, else the one that a plugin provides, else what --engine finds.

    :param on_served: Called with each server that answers, and the point that it was asked for.
    :param workers: Number of xdist workers.
    :raises ServerError: There is no server, or it cannot be measured.
    """

    def refuse(served: Served | None) -> None:
        reference = served.is_reference if served is not None else pool.choice.is_reference
        if problem := config.hook.pytest_dsr1_refuse_server(
            config=config, why=pool.choice.why, reference=reference, served=served
        ):
            raise ServerError(problem)

    if not sweep.server_urls:
        provided = config.hook.pytest_dsr1_server(config=config, sweep=sweep)
        if provided is not None:
            sweep = with_server(sweep, provided, "the hook pytest_dsr1_server")
    pool = ServerPool(
        sweep,
        os.environ,
        reporter,
        purpose=f"pytest in {config.invocation_params.dir}",
        on_served=on_served,
        concurrent=max(workers, 1),
    )
    try:
        # Before the server is asked and the corpus is downloaded, both of which take time.
        refuse(None)
        for served in pool.ask_all() if pool.choice.running else ():
            refuse(served)
        _require_measurable(sweep, pool, workers)
    except (AccuracyError, ServerError, ValueError) as error:
        pool.stop()
        raise ServerError(str(error)) from None
    return pool


def _require_measurable(config: SweepConfig, pool: ServerPool, workers: int) -> None:
    """Find now what would otherwise fail after minutes of waiting."""
    plan = pool.choice.plan
    launches = plan.launches(config.points) if plan is not None and workers else ()
    if plan is not None and len(launches) > 1:
        raise ServerError(
            f"-n {workers}: recipe {plan.recipe.name} restarts the server for {launches[1][1][0].id} "
            f"({launches[1][0].changes_from(launches[0][0])}), which a worker cannot ask for; run without -n, or fix "
            "these with --server-arg"
        )
    if not pool.served or not config.points:
        return
    served = pool.served[0]
    if config.mode is not Mode.ACC:
        for scenario in config.scenarios:
            context, needed = served.context_length, scenario.isl + scenario.osl
            if context is not None and needed > context:
                raise ServerError(
                    f"ISL {scenario.isl} + OSL {scenario.osl} = {needed} tokens do not fit into the context of "
                    f"{served.model} at {served.url}, {context} tokens; ask for shorter lengths, or serve a longer "
                    "context"
                )
        prompt_plan(config, served)
    if config.accuracy:
        accuracy_source(config, served)
