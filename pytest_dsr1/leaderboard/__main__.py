"""`python -m pytest_dsr1.leaderboard serve`: a leaderboard of one's own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_dsr1.core.config import Scenario
from pytest_dsr1.leaderboard.schema import FIELDS_11, FIELDS_14
from pytest_dsr1.option_table import BY_NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C; 2 where Gradio is missing."""
    parser = argparse.ArgumentParser(prog="python -m pytest_dsr1.leaderboard", description=__doc__)
    serve = parser.add_subparsers(required=True).add_parser("serve", help="serve a leaderboard")
    serve.add_argument(
        "--scenario", metavar="ISL/OSL[,...]", default="1024/1024", help="one at /, several at /islNoslM"
    )
    serve.add_argument("--fields", type=int, choices=(11, 14), default=14, help="11: the competition's (default: 14)")
    serve.add_argument("--database", type=Path, default=Path("leaderboard.sqlite"), help="default: %(default)s")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine only")
    serve.add_argument("--port", type=int, default=7860, help="default: %(default)s; 0: any that is free")
    given = parser.parse_args(arguments)
    try:
        scenarios: tuple[Scenario, ...] = BY_NAME["--scenario"].parse(given.scenario)
    except ValueError:
        parser.error(f"--scenario: {given.scenario!r} is not accepted; use {BY_NAME['--scenario'].accepted}")
    try:
        from pytest_dsr1.leaderboard.serve import make_app
    except ImportError as error:
        print(f"{error}: install the extra: pip install 'pytest-dsr1[leaderboard]'", file=sys.stderr)
        return 2
    import uvicorn

    from pytest_dsr1.leaderboard.store import Store

    app = make_app(Store(given.database), scenarios, FIELDS_11 if given.fields == 11 else FIELDS_14)
    config = uvicorn.Config(app, host=given.host, port=given.port, log_level="warning")
    listening = config.bind_socket()
    host, port = listening.getsockname()[:2]
    lengths = ", ".join(map(str, scenarios))
    print(f"leaderboard of ISL/OSL {lengths} at http://{host}:{port}, rows in {given.database}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
