"""The entry point for pytest; it adds nothing until a sweep is asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

from pytest_dsr1 import fixtures, hookspecs
from pytest_dsr1.options.table import BY_NAME, OPTIONS

# Other modules are imported where they are used: a session without a sweep imports none of them.

#: Whether tests of the sweep were collected without lengths, and are skipped for that reason.
_PLACEHOLDERS = pytest.StashKey[bool]()
_PREFIX = "dsr1_"


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    # In every session, since a conftest may implement the hooks.
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    for option in OPTIONS:
        kind = "bool" if option.is_flag else "args" if option.repeatable else "string"
        # None tells an option that the ini file does not have from an empty one.
        parser.addini(option.dest, f"Default of {option.name}", type=kind, default=None)  # type: ignore[arg-type]
    pluginmanager.register(fixtures, "dsr1_fixtures")


# The options are declared last, and only if they are used: a name that another plugin declares belongs to that plugin.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, None, None]:
    typed = set(_option_names(args)) & BY_NAME.keys()
    # A worker of xdist has the options of its controller already.
    inherited = {option.name for option in OPTIONS if getattr(early_config.option, option.dest, None) is not None}
    in_ini = {option.name for option in OPTIONS if early_config.getini(option.dest) not in (None, [], False)}
    shows_help = early_config.known_args_namespace.help
    if not (typed or inherited or in_ini or shows_help):
        return (yield)
    from pytest_dsr1 import pytest_internals

    earlier = pytest_internals.declared_names(parser)
    free = [option for option in OPTIONS if option.name not in earlier]
    pytest_internals.hide_values(early_config, parser, args, free)
    result = yield
    taken = pytest_internals.declared_names(parser) & BY_NAME.keys()
    starts = any(BY_NAME[name].starts_sweep for name in (typed - taken) | inherited | in_ini) and not shows_help
    if starts and (clash := sorted(typed & taken)):
        owner = pytest_internals.owner_of_option(early_config, clash[0])
        raise pytest.UsageError(
            f"{clash[0]} is an option of this sweep, and {owner} declares an option of that name; run the sweep in "
            "another folder, or keep that file out: --noconftest, or -p no:NAME for a plugin"
        )
    # A conftest that is found during collection may declare an option with the name of one that was not typed.
    wanted = BY_NAME.keys() if shows_help else typed | inherited
    pytest_internals.add_options(parser, (option for option in OPTIONS if option.name in wanted - taken))
    if typed - taken and not inherited:
        _refuse_moved_rootdir(early_config, parser, args)
    return result


def _option_names(args: Iterable[str]) -> Iterator[str]:
    """The names of the options in `args`, those in @files included."""
    for word in args:
        if word == "--":
            return
        if word.startswith("--"):
            yield word.partition("=")[0]
        elif word.startswith("@"):
            try:
                yield from _option_names(Path(word[1:]).read_text(encoding="utf-8").splitlines())
            except OSError:
                continue


def _refuse_moved_rootdir(config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Refuse a rootdir that pytest took from an option's value.

    pytest determines its rootdir before it knows our options: it takes a separate value for the path of a test if that
    path exists. The reports and the ini file would be in another folder.
    """
    from pytest_dsr1 import pytest_internals

    addopts = len(config.getini("addopts"))
    found = pytest_internals.location_by(config, parser, args[addopts:])
    if found != (config.rootpath, config.inipath):
        raise pytest.UsageError(
            f"the value of an option moved the rootdir from {found[0]} to {config.rootpath}: write options that take a "
            "path as --option=VALUE"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if getattr(config.option, BY_NAME["--submit-pending"].dest, None) is None:
        return None
    import os

    from pytest_dsr1.options import reading
    from pytest_dsr1.submit.plugin import submit_pending, with_hook

    typed = reading.typed_options(config)
    return submit_pending(typed, os.environ, config.invocation_params.dir, with_hook(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    # Called before pytest_configure. One worker for each server: two on one would measure each other's load.
    if not _starts_sweep(config):
        return None
    dest = BY_NAME["--server-url"].dest
    return max(len(getattr(config.option, dest, None) or config.getini(dest) or ()), 1)


def pytest_configure(config: pytest.Config) -> None:
    if _starts_sweep(config):
        from pytest_dsr1.session import activate

        activate(config)


def _starts_sweep(config: pytest.Config) -> bool:
    starting = [option.dest for option in OPTIONS if option.starts_sweep]
    return any(getattr(config.option, dest, None) or config.getini(dest) for dest in starting)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if f"{_PREFIX}point" in metafunc.fixturenames:
        from pytest_dsr1 import collection

        metafunc.config.stash[_PLACEHOLDERS] = collection.parametrize(metafunc)


# A user's own tests measure without lengths on the command line.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    names = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if any(name.startswith(_PREFIX) for name in names) and not _starts_sweep(session.config):
        from pytest_dsr1 import collection
        from pytest_dsr1.session import activate_late

        if any(map(collection.measures_without_sweep, session.items)):
            activate_late(session.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash.get(_PLACEHOLDERS, False):
        from pytest_dsr1 import collection

        terminalreporter.write_line(f"dsr1: {collection.HINT}")
