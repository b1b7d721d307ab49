"""`pytest-dsr1 leaderboard serve`: a leaderboard of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_dsr1.core.config import Scenario, scenarios_of
from pytest_dsr1.submit.schema import FIELDS_11, FIELDS_14


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl+C. Returns 2 if Gradio is not installed.

    :raises SystemExit: An argument is not accepted (status 2), or help was asked for (status 0).
    """
    parser = argparse.ArgumentParser(prog="pytest-dsr1 leaderboard", description="A leaderboard of your own")
    serve = parser.add_subparsers(required=True).add_parser("serve", help="serve a leaderboard until Ctrl+C")
    serve.add_argument(
        "--scenario",
        metavar="ISL/OSL[,...]",
        type=_scenarios,
        default="1024/1024",
        help="one is served at /, several are served at /islNoslM (default: %(default)s)",
    )
    serve.add_argument(
        "--fields", type=int, choices=(11, 14), default=14, help="11 are the competition's (default: %(default)s)"
    )
    serve.add_argument(
        "--database", type=Path, default=Path("leaderboard.sqlite"), help="SQLite file (default: %(default)s)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    serve.add_argument("--port", type=int, default=7860, help="0 takes any free port (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        import uvicorn

        from pytest_dsr1.leaderboard.serve import make_app
    except ImportError as error:
        print(f"{error}: install the extra: pip install 'pytest-dsr1[leaderboard]'", file=sys.stderr)
        return 2
    from pytest_dsr1.leaderboard.store import Store

    app = make_app(Store(given.database), given.scenario, FIELDS_11 if given.fields == 11 else FIELDS_14)
    config = uvicorn.Config(app, host=given.host, port=given.port, log_level="warning")
    listening = config.bind_socket()
    host, port = listening.getsockname()[:2]
    lengths = ", ".join(map(str, given.scenario))
    print(f"leaderboard of ISL/OSL {lengths} at http://{host}:{port}, rows in {given.database}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


def _scenarios(text: str) -> tuple[Scenario, ...]:
    try:
        return scenarios_of(text)
    except ValueError:
        accepted = "ISL/OSL pairs of whole numbers from 1, each once, separated by commas, or all"
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; use {accepted}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
