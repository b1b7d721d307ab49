"""Which Python has SGLang: the one typed, else ours, else the first on PATH; it is asked, never imported."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from pytest_dsr1.servers.interpreter import Interpreter, InterpreterNotFoundError, find_interpreter

from pytest_dsr1.servers import interpreter

WITH = """echo '{"sglang": "0.5.23"}'"""
WITHOUT = """echo '{"sglang": null}'"""


def python3(folder: Path, script: str) -> str:
    """Install a python3 that answers like this."""
    folder.mkdir(exist_ok=True)
    path = folder / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def on_path(*folders: Path) -> dict[str, str]:
    """An environment that finds its programs there."""
    return {"PATH": os.pathsep.join(map(str, folders))}


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Our own Python, which has no SGLang."""
    path = python3(tmp_path / "ours", WITHOUT)
    monkeypatch.setattr(sys, "executable", path)
    return path


class TestSearch:
    """Nobody said which."""

    def test_ours_comes_first(self, ours: str, tmp_path: Path) -> None:
        """An environment that has SGLang beside us needs no other."""
        python3(tmp_path / "ours", WITH)
        python3(tmp_path / "a", """echo '{"sglang": "0.1"}'""")
        assert find_interpreter(None, on_path(tmp_path / "a")) == Interpreter(ours, "0.5.23")

    def test_then_the_first_on_path_that_has_it(self, ours: str, tmp_path: Path) -> None:
        """Folders without a python3, or with one without SGLang, are passed over."""
        python3(tmp_path / "a", WITHOUT)
        found = python3(tmp_path / "b", WITH)
        python3(tmp_path / "c", """echo '{"sglang": "0.1"}'""")
        environ = on_path(tmp_path / "absent", tmp_path / "a", tmp_path / "b", tmp_path / "c")
        assert find_interpreter(None, environ) == Interpreter(found, "0.5.23")

    def test_a_link_stays_a_link(self, ours: str, tmp_path: Path) -> None:
        """A virtual environment's Python is one, and what it points to has other packages."""
        target = python3(tmp_path / "usr", WITH)
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / "python3").symlink_to(target)
        assert find_interpreter(None, on_path(tmp_path / "venv")).path == str(tmp_path / "venv" / "python3")

    def test_each_is_asked_once(self, ours: str, tmp_path: Path) -> None:
        """Ours stands on PATH too, as a rule."""
        python3(tmp_path / "ours", f"echo asked >> {tmp_path}/log; {WITHOUT}")
        with pytest.raises(InterpreterNotFoundError):
            find_interpreter(None, on_path(tmp_path / "ours", tmp_path / "ours"))
        assert (tmp_path / "log").read_text() == "asked\n"

    def test_none_has_it(self, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says who was asked, what each said, and what to do."""
        monkeypatch.setattr(interpreter, "TIMEOUT_S", 2.0)
        scripts = [WITHOUT, "echo no module >&2; exit 3", "echo hello", "exec /bin/sleep 60"]
        paths = [python3(tmp_path / f"{number}", script) for number, script in enumerate(scripts)]
        with pytest.raises(InterpreterNotFoundError) as refused:
            find_interpreter(None, on_path(*(Path(path).parent for path in paths)))
        assert str(refused.value) == (
            f"no Python with SGLang was found: {ours} has no sglang; {paths[0]} has no sglang; "
            f"{paths[1]} ended with status 3 (no module); {paths[2]} does not answer like a Python; "
            f"{paths[3]} did not answer within 2 s; name one with --sglang-python PATH"
        )

    def test_there_is_no_python_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An embedded interpreter does not know where it is."""
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(InterpreterNotFoundError, match="there is no python3 on PATH; name one with"):
            find_interpreter(None, {})


class TestTyped:
    """--sglang-python."""

    def test_no_other_is_asked(self, ours: str, tmp_path: Path) -> None:
        """Whatever else there is."""
        python3(tmp_path / "ours", """echo '{"sglang": "0.1"}'""")
        path = python3(tmp_path / "a", WITH)
        assert find_interpreter(Path(path), {}) == Interpreter(path, "0.5.23")

    def test_one_that_does_not_exist(self, tmp_path: Path) -> None:
        """A spelling mistake is no reason to take another."""
        with pytest.raises(InterpreterNotFoundError, match=r"--sglang-python .*/absent does not exist; name a Python"):
            find_interpreter(tmp_path / "absent", dict(os.environ))

    def test_one_that_is_no_program(self, tmp_path: Path) -> None:
        """A folder, say."""
        with pytest.raises(InterpreterNotFoundError, match=r"--sglang-python .* is no executable file; name a Python"):
            find_interpreter(tmp_path, dict(os.environ))

    def test_one_without_sglang(self, tmp_path: Path) -> None:
        """Nor is it searched for elsewhere then."""
        path = python3(tmp_path / "a", WITHOUT)
        with pytest.raises(InterpreterNotFoundError, match=r"--sglang-python .*python3 has no sglang; name a Python"):
            find_interpreter(Path(path), dict(os.environ))


class TestQuestion:
    """What a real Python is asked."""

    @staticmethod
    def ask(folder: Path) -> str:
        """The version that a real Python says which has the packages in `folder`, and no others."""
        path = python3(folder / "bin", f'exec {shlex.quote(sys.executable)} -S "$@"')
        return find_interpreter(Path(path), os.environ | {"PYTHONPATH": str(folder)}).version

    def test_an_installed_sglang_is_found_and_not_imported(self, tmp_path: Path) -> None:
        """Importing it takes 20 s."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").write_text("raise SystemExit('imported')")
        (tmp_path / "sglang-9.8.7.dist-info").mkdir()
        (tmp_path / "sglang-9.8.7.dist-info" / "METADATA").write_text("Name: sglang\nVersion: 9.8.7\n")
        assert self.ask(tmp_path) == "9.8.7"

    def test_a_source_tree_has_no_version(self, tmp_path: Path) -> None:
        """It is on PYTHONPATH and was never installed."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "__init__.py").touch()
        assert self.ask(tmp_path) == "unknown"

    def test_a_folder_of_that_name_is_none(self, tmp_path: Path) -> None:
        """Python would take it for a namespace package."""
        (tmp_path / "sglang").mkdir()
        (tmp_path / "sglang" / "notes.txt").write_text("")
        with pytest.raises(InterpreterNotFoundError, match="has no sglang"):
            self.ask(tmp_path)
