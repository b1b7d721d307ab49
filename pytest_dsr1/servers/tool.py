"""A short command that is asked one thing, and may be missing, hang, fail or answer nonsense."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence


class ToolError(RuntimeError):
    """It gave no answer; the message says why, in a few words that follow its name."""


def answer(argv: Sequence[str], environ: Mapping[str, str], timeout_s: float) -> str:
    """What a command prints.

    :param argv: With the path of the command, which is not searched for.
    :raises ToolError: It cannot be run, does not end in time or with status 0.
    """
    try:
        done = subprocess.run(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ToolError(f"cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ToolError(f"ended with status {done.returncode}{f' ({said[-1][:120]})' if said else ''}")
    return done.stdout
