"""The hooks; each hands over to the module that knows."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_dsr1 import collection, fixtures, options, workers
from pytest_dsr1.activation import MISSING, SWEEP_CONFIG, activate


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add_options(parser)


# tryfirst: before anything is configured, so that a second beginning is the only one.
@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    args = options.with_paths_joined(config.invocation_params.args)
    if args != list(config.invocation_params.args):
        return pytest.main(args, config.invocation_params.plugins)
    typed = options.typed_options(config)
    if "--submit-pending" not in typed:
        return None
    from pytest_dsr1.submit.plugin import submit_pending

    return submit_pending(typed, options.environment(), config.invocation_params.dir)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    # Asked before anything is configured.
    given = {**options.ini_options(config), **options.typed_options(config)}
    return workers.auto_workers(len(given.get("--server-url", ()))) if options.asks_for_sweep(given) else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(fixtures, "dsr1_fixtures")
    typed = options.typed_options(config)
    if options.asks_for_sweep({**options.ini_options(config), **typed}):
        activate(config, typed)
    else:
        for option in ("--preflight", "--print-launch"):
            if option in typed:
                raise pytest.UsageError(f"{option}: {collection.HINT} {option}")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    sweep = collector.config.stash.get(SWEEP_CONFIG, None)
    return None if sweep is None or collection.exists(obj, sweep) else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    collection.parametrize(metafunc, metafunc.config.stash.get(SWEEP_CONFIG, None))


# trylast: whatever order other plugins put the tests in, accuracy comes before performance.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SWEEP_CONFIG in config.stash:
        dropped = collection.arrange(items, config.stash[SWEEP_CONFIG], config.stash[MISSING])
        if dropped:
            config.hook.pytest_deselected(items=dropped)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if collection.point_of(item) is not None:
        fixtures.explain(item, report, call)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", ())
    if any(collection.HINT in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"dsr1: {collection.HINT}")
