"""Which Python has SGLang; it is asked, never imported here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_dsr1.servers.tool import ToolError, answer

#: One that starts from a cold network disk needs seconds.
TIMEOUT_S = 20.0
#: Looks for the package and does not import it, which takes 20 s. A folder that happens to be called sglang has no
#: origin; a source tree on PYTHONPATH has no version.
_QUESTION = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("sglang")
version = None
if spec is not None and spec.origin is not None:
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
print()
print(json.dumps({"sglang": version}))
"""


class InterpreterNotFoundError(LookupError):
    """No Python has SGLang: which were asked, what each said, what to do."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that has SGLang.

    :param path: As found: the symbolic link of a virtual environment is its Python, what it points to is another.
    :param version: Of SGLang; "unknown" where it was not installed as a package.
    """

    path: str
    version: str


def find_interpreter(option: Path | None, environ: Mapping[str, str]) -> Interpreter:
    """The Python to launch SGLang with: the one that was typed, else ours, else the first python3 on PATH that has it.

    :param option: `--sglang-python`; no other is asked then.
    :param environ: What a server will inherit: PATH and PYTHONPATH count.
    :raises InterpreterNotFoundError: The one that was typed has no SGLang, or none has.
    """
    if option is not None:
        try:
            return _ask(str(option.absolute()), environ)
        except ToolError as error:
            raise InterpreterNotFoundError(
                f"--sglang-python {option} {error}; name a Python that has SGLang, or leave the option out"
            ) from None
    tried = []
    for path in _candidates(environ):
        try:
            return _ask(path, environ)
        except ToolError as error:
            tried.append(f"{path} {error}")
    raise InterpreterNotFoundError(
        f"no Python with SGLang was found: {'; '.join(tried) or 'there is no python3 on PATH'}; "
        "name one with --sglang-python PATH"
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    folders = [Path(folder).absolute() for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    for path in dict.fromkeys([sys.executable, *(str(folder / "python3") for folder in folders)]):
        if path and shutil.which(path):
            yield path


def _ask(path: str, environ: Mapping[str, str]) -> Interpreter:
    """:raises ToolError: It has no SGLang, or does not answer like a Python."""
    if not shutil.which(path):
        raise ToolError("is no executable file" if os.access(path, os.F_OK) else "does not exist")
    said = answer([path, "-c", _QUESTION], environ, TIMEOUT_S)
    try:
        version = json.loads(said.splitlines()[-1])["sglang"]
    except (ValueError, LookupError, TypeError):
        raise ToolError("does not answer like a Python") from None
    if not isinstance(version, str):
        raise ToolError("has no sglang")
    return Interpreter(path, version)
