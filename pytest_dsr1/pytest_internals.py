"""All uses of pytest beyond its public interface; each has a test.

They work with pytest 9.0 and 9.2. If a later version changes one of these names, only the tests of this file fail.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_dsr1.options.table import Option

# -- options ----------------------------------------------------------------------------------------------------------


def declared_names(parser: pytest.Parser) -> frozenset[str]:
    """The names of all options that pytest, its plugins and conftests have declared."""
    return frozenset(name for group in parser._groups for option in group.options for name in option.names())


def add_options(parser: pytest.Parser, options: Iterable[Option]) -> None:
    """Declare our options; `options.reading` parses their values."""
    group = parser.getgroup("dsr1", "DeepSeek-R1 serving benchmark (pytest-dsr1)")
    for option in options:
        attributes: dict[str, Any] = {"dest": option.dest, "default": None, "help": option.help.replace("%", "%%")}
        if option.is_flag:
            attributes["action"] = "store_true"
        else:
            attributes |= {"action": "append" if option.repeatable else "store", "metavar": option.kind.metavar}
        group.addoption(option.name, **attributes)


def hide_values(config: pytest.Config, parser: pytest.Parser, args: Sequence[str], options: Iterable[Option]) -> None:
    """Keep the values of undeclared options from being taken for paths of tests.

    The paths decide which conftests are loaded first, and these may declare options of their own.
    """
    # It raises where pytest's own parser, which reports the same errors later, would exit.
    quiet = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options:
        quiet.add_argument(option.name, action="store_true" if option.is_flag else "append")
    try:
        _, rest = quiet.parse_known_args(list(args))
    except argparse.ArgumentError:
        return
    namespace = parser.parse_known_args(rest, copy.copy(config.option))
    config.known_args_namespace.file_or_dir[:] = namespace.file_or_dir


def owner_of_option(config: pytest.Config, name: str) -> str:
    """The file of the plugin or conftest that declares an option, else its name.

    It is the one whose hook has the option's name among the constants of its code.
    """
    for implementation in config.hook.pytest_addoption.get_hookimpls():
        code = getattr(implementation.function, "__code__", None)
        if code is not None and repr(name) in repr(code.co_consts):
            return str(getattr(implementation.plugin, "__file__", None) or implementation.plugin_name)
    return "another plugin"


def location_by(config: pytest.Config, parser: pytest.Parser, args: Sequence[str]) -> tuple[Path, Path | None]:
    """Rootdir and ini file as pytest would find them if it knew our options."""
    from _pytest.config.findpaths import determine_setup

    namespace = parser.parse_known_args(args, copy.copy(config.option))
    rootdir, ini_file, *_ = determine_setup(
        inifile=namespace.inifilename,
        override_ini=namespace.override_ini,
        args=namespace.file_or_dir,
        rootdir_cmd_arg=namespace.rootdir or None,
        invocation_dir=config.invocation_params.dir,
    )
    return rootdir, ini_file


# -- the sweep's own module -------------------------------------------------------------------------------------------


class SweepModule(pytest.Module):
    """The sweep's tests, always imported from the package."""

    def _getobj(self) -> ModuleType:
        return importlib.import_module("pytest_dsr1.test_sweep")


def sweep_module(session: pytest.Collector, shown: str, path: Path) -> SweepModule:
    """The sweep's module as a collector with the id `shown`.

    The id is the same in a checkout and a wheel, so that --lf, JUnit files and benchmark rows match.
    """
    module: SweepModule = SweepModule.from_parent(session, path=path, nodeid=shown)
    return module


def modules_with_fixture(config: pytest.Config, name: str) -> list[Path]:
    """The conftest files that define a fixture."""
    found = []
    for plugin_name, plugin in config.pluginmanager.list_name_plugin():
        if plugin is None or not plugin_name.endswith("conftest.py"):
            continue
        for attribute, value in inspect.getmembers_static(plugin):
            marker = getattr(value, "_fixture_function_marker", None)
            if marker is not None and (marker.name or attribute) == name:
                found.append(Path(plugin_name))
    return found


# -- verdicts ---------------------------------------------------------------------------------------------------------


def count_as_failed(config: pytest.Config, nodeid: str) -> None:
    """Have --lf select a skipped test, which pytest does not count as failed."""
    plugin = config.pluginmanager.get_plugin("lfplugin")
    if plugin is not None:
        plugin.lastfailed[nodeid] = True
