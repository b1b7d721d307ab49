"""A stand-in for `sglang.launch_server`, which may fail in several ways.

What it does beside serving, the variable `STAND_IN` says: a JSON object with fields of `Behaviour`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.timed import Script, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "stand-in"


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What goes wrong.

    :param says: Lines of its log before it serves.
    :param noise: So many more lines of 100 characters.
    :param dies: With this exit status, then.
    :param named: How /v1/models names the model; None: as it was told.
    :param never_ready: It goes on loading.
    :param deaf: SIGTERM does not end it; it says "no".
    :param children: A child in its own process group, and one that left it.
    :param shm: Files that it leaves in /dev/shm, mapped while it lives.
    :param answers: As in `timed.Script`.
    """

    says: tuple[str, ...] = ("Load weight begin. avail mem=1.00 GB",)
    noise: int = 0
    dies: int | None = None
    named: str | None = None
    never_ready: bool = False
    deaf: bool = False
    children: bool = False
    shm: tuple[str, ...] = ()
    answers: dict[str, Any] = field(default_factory=dict)
    server_info: dict[str, Any] = field(default_factory=dict)


def write_recipe(folder: Path, **behaviour: Any) -> Path:
    """A recipe that starts a stand-in instead of SGLang."""
    Behaviour(**behaviour)  # a misspelt field is an error here, not in the server
    path = folder / "stand-in.toml"
    path.write_text(
        f"""
summary = "a stand-in for SGLang"
source = "these tests"
model = "{MODEL}"
tp = 1
command = ["{sys.executable}", "-m", "tests.servers.launched"]

[environment]
PYTHONPATH = "{ROOT}"
STAND_IN = '{json.dumps(behaviour)}'

[arguments]
chunked-prefill-size = 4096

[[when]]
isl = 32
conc_above = 2
arguments = {{ chunked-prefill-size = 1024 }}
""",
        encoding="utf-8",
    )
    return path


def main() -> None:
    behaviour = Behaviour(**json.loads(os.environ.get("STAND_IN", "{}")))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model-path")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--tensor-parallel-size", type=int)
    parser.add_argument("--chunked-prefill-size", type=int)
    parser.add_argument("--served-model-name")
    args = parser.parse_args()
    if behaviour.deaf:
        signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"no\n"))
    maps = [_shared(name) for name in behaviour.shm]
    if behaviour.children:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    for line in behaviour.says:
        print(line, file=sys.stderr, flush=True)
    for _ in range(behaviour.noise):
        print("-" * 99, file=sys.stderr, flush=True)
    if behaviour.dies is not None:
        sys.exit(behaviour.dies)
    while behaviour.never_ready:
        time.sleep(3600)
    info = {"tp_size": args.tensor_parallel_size, "chunked_prefill_size": args.chunked_prefill_size, "version": "0.0"}
    script = Script(
        model=behaviour.named or args.served_model_name or args.model_path,
        server_info=info | behaviour.server_info,
        default={"ttft_s": 0.005, "interval_s": 0.002} | behaviour.answers,
        port=args.port,
    )
    ScriptedServer(script).run()
    del maps


def _shared(name: str) -> mmap.mmap:
    path = Path("/dev/shm") / name
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 4096)


if __name__ == "__main__":
    main()
