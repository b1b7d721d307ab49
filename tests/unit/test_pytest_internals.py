"""What the plugin uses of pytest beyond its public interface, one test for each function."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pluggy
import pytest

from pytest_dsr1 import pytest_internals
from pytest_dsr1.options.table import BY_NAME, OPTIONS


def new_parser() -> pytest.Parser:
    return pytest.Parser(_ispytest=True)


def fake_config(**attributes: object) -> pytest.Config:
    return cast(pytest.Config, SimpleNamespace(**attributes))


# -- options ----------------------------------------------------------------------------------------------------------


def test_declared_names() -> None:
    """Long and short names, in groups and outside."""
    parser = new_parser()
    parser.addoption("--theirs", "-T")
    parser.getgroup("other").addoption("--other")
    assert pytest_internals.declared_names(parser) >= {"--theirs", "-T", "--other"}


def test_add_options() -> None:
    """Texts stay texts, a flag takes none, what may be repeated is a list, and nothing is a default."""
    parser = new_parser()
    pytest_internals.add_options(parser, OPTIONS)
    words = ["--isl", "1k", "--preflight", "--server-url", "a", "--server-url=b"]
    option = parser.parse_known_args(words)
    assert (option.dsr1_isl, option.dsr1_preflight, option.dsr1_server_url) == ("1k", True, ["a", "b"])
    given = {"dsr1_isl", "dsr1_preflight", "dsr1_server_url"}
    assert not {one.dest for one in OPTIONS if getattr(option, one.dest) is not None} ^ given
    assert pytest_internals.declared_names(parser) >= BY_NAME.keys()


def test_help_of_added_options() -> None:
    """A percent sign in a help text is one."""
    parser = new_parser()
    percent = OPTIONS[0]._replace(help="within 3 % of it")
    pytest_internals.add_options(parser, [percent])
    assert "within 3 % of it" in parser.optparser.format_help()


@pytest.mark.parametrize(
    ("args", "paths"),
    [
        (["--reports-dir", "out", "tests"], ["tests"]),
        (["--reports-dir=out", "--keep-server", "tests"], ["tests"]),
        (["--server-url", "a", "--server-url", "b"], []),
        (["tests", "--", "--isl"], ["tests", "--isl"]),
    ],
    ids=["value", "flag", "only values", "dashes"],
)
def test_hide_values(args: list[str], paths: list[str]) -> None:
    """Only what is no value of an option is the path of a test."""
    parser = new_parser()
    known = argparse.Namespace(file_or_dir=["everything"])
    config = fake_config(option=argparse.Namespace(), known_args_namespace=known)
    pytest_internals.hide_values(config, parser, args, OPTIONS)
    assert known.file_or_dir == paths


def test_hide_values_of_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is left as it is: pytest itself complains later."""
    known = argparse.Namespace(file_or_dir=["everything"])
    config = fake_config(option=argparse.Namespace(), known_args_namespace=known)
    pytest_internals.hide_values(config, new_parser(), ["--isl"], OPTIONS)
    assert known.file_or_dir == ["everything"]
    assert capsys.readouterr() == ("", "")


class _Specifications:
    @pytest.hookspec(historic=True)
    def pytest_addoption(self, parser: object, pluginmanager: object) -> None: ...


class _InLoop:
    @pytest.hookimpl
    def pytest_addoption(self, parser: pytest.Parser) -> None:
        for name in ("--looped", "-G"):
            parser.getgroup("g", "description").addoption(name, default=1)


def test_owner_of_option() -> None:
    """The file of a conftest, the name of a plugin that has no file."""
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(_Specifications)
    conftest = ModuleType("conftest")
    conftest.__file__ = "/project/conftest.py"

    def pytest_addoption(parser: pytest.Parser) -> None:
        parser.addoption("--plain")

    vars(conftest)["pytest_addoption"] = pytest.hookimpl(pytest_addoption)
    for name, plugin in (("/project/conftest.py", conftest), ("in_loop", _InLoop())):
        manager.register(plugin, name)
    config = fake_config(hook=manager.hook, pluginmanager=manager)
    assert pytest_internals.owner_of_option(config, "--plain") == "/project/conftest.py"
    assert pytest_internals.owner_of_option(config, "--looped") == "in_loop"
    assert pytest_internals.owner_of_option(config, "--loop") == "another plugin"


def test_owner_of_an_option_of_pytest(pytestconfig: pytest.Config) -> None:
    """pytest's own options have an owner, too."""
    assert pytest_internals.owner_of_option(pytestconfig, "--lf").endswith("cacheprovider.py")


def test_location_by(tmp_path: Path) -> None:
    """Rootdir and ini file as from a command line without the values of options."""
    for name in ("project", "data"):
        (tmp_path / name).mkdir()
    ini_file = tmp_path / "project" / "pytest.ini"
    ini_file.write_text("[pytest]\n")
    parser = new_parser()
    parser.addoption("--rootdir")
    parser.addoption("--config-file", dest="inifilename")
    parser.addoption("--override-ini", action="append")
    here = SimpleNamespace(dir=tmp_path / "project")
    config = fake_config(option=argparse.Namespace(), invocation_params=here)
    assert pytest_internals.location_by(config, parser, []) == (tmp_path / "project", ini_file)
    assert pytest_internals.location_by(config, parser, [str(tmp_path / "data")]) == (tmp_path, None)
    assert pytest_internals.location_by(config, parser, ["--rootdir", str(tmp_path)])[0] == tmp_path


# -- the sweep's own module -------------------------------------------------------------------------------------------


def test_sweep_module(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It has the id that it is told, and is the package's module, whatever lies at its path."""
    module = pytest_internals.sweep_module(request.session, "tests_bench/test_sweep.py", tmp_path / "test_sweep.py")
    assert module.nodeid == "tests_bench/test_sweep.py"
    assert module.obj.__name__ == "pytest_dsr1.test_sweep"
    assert callable(module.obj.test_perf)


def test_modules_with_fixture() -> None:
    """By the name of the function or the name that it is given; in conftest files only."""
    manager = pluggy.PluginManager("pytest")

    @pytest.fixture
    def wanted() -> None: ...

    @pytest.fixture(name="wanted")
    def _renamed() -> None: ...

    for name, attribute, value in (
        ("/a/conftest.py", "wanted", wanted),
        ("/b/conftest.py", "_renamed", _renamed),
        ("/c/conftest.py", "other", wanted),
        ("/d/conftest.py", "wanted", len),
        ("plugin", "wanted", wanted),
    ):
        module = ModuleType("conftest")
        setattr(module, attribute, value)
        manager.register(module, name)
    config = fake_config(pluginmanager=manager)
    assert pytest_internals.modules_with_fixture(config, "wanted") == [Path("/a/conftest.py"), Path("/b/conftest.py")]


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_count_as_failed(pytestconfig: pytest.Config) -> None:
    """--lf selects by this mapping; without the cache plugin there is none."""
    plugin = pytestconfig.pluginmanager.get_plugin("lfplugin")
    assert plugin is not None
    pytest_internals.count_as_failed(pytestconfig, "a skipped test")
    assert plugin.lastfailed.pop("a skipped test")
    without = SimpleNamespace(get_plugin=lambda name: None)
    pytest_internals.count_as_failed(fake_config(pluginmanager=without), "a skipped test")
