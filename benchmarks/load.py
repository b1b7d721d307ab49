"""How exact the load generator is, and what it costs, beside the least that a Python client can do.

    python benchmarks/load.py

A scripted server knows when it received each request and sent each token, on the clock that its clients read. Two
clients take turns on it, A B A B: ours, and a bare protocol on uvloop that does nothing but stamp its reads. The
table gives what their figures differ from the server's by, and their CPU time per token.

The server has core 0 and SCHED_FIFO 50, the client core 1 and SCHED_FIFO 20, so that neither waits for anything else.
Where the right to that is missing, the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, from a checkout that need not be installed

from pytest_dsr1.batch.samples import read_samples  # noqa: E402
from pytest_dsr1.core.config import LoadLimits, Point, Scenario, SweepConfig  # noqa: E402 - needs the path above
from pytest_dsr1.core.samples import LoadRun  # noqa: E402
from pytest_dsr1.load.closed_loop import run_point  # noqa: E402
from pytest_dsr1.load.prompts import PointPrompts, plan_prompts  # noqa: E402
from pytest_dsr1.load.requests import Request, Target, render_requests  # noqa: E402
from tests.servers.timed import timed_server  # noqa: E402

ISL, OSL = 1024, 128
TTFT_S, INTERVAL_S = 0.1, 0.02
#: Requests measured for each stream: three waves.
WAVES = 3
VOCAB_SIZE = 128_000
SEED = 0
SERVER_CPU, CLIENT_CPU = 0, 1
SERVER_PRIORITY, CLIENT_PRIORITY = 50, 20


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as a client or the server saw it: sent or received, then its events, in ns."""

    began_ns: int
    event_ns: npt.NDArray[np.int64]


def prompts_for(conc: int) -> tuple[Point, PointPrompts]:
    """The prompts that both clients send."""
    config = SweepConfig(
        scenarios=(Scenario(ISL, OSL),), concurrencies=(conc,), num_prompts=WAVES * conc, prompt_seed=SEED
    )
    point = config.points[0]
    return point, plan_prompts(config, VOCAB_SIZE).at(point)


# The clients, each in a process of its own: what they print, by the index of the request.


def run_ours(url: str, conc: int) -> dict[str, Any]:
    """Our load generator, as its users run it."""
    asked = {"isl": ISL, "osl": OSL, "conc": conc, "num-prompts": WAVES * conc, "server-url": url}
    asked |= {"accuracy": "off", "prompt-seed": SEED}
    with tempfile.TemporaryDirectory() as reports:
        options = [f"--{name}={value}" for name, value in (asked | {"reports-dir": reports}).items()]
        # What it prints is not ours to print; how it exits is not the question here, what it measured is.
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", *options], cwd=ROOT, stdout=subprocess.PIPE)
        files = list(Path(reports).glob("batch_*/samples_*.npz"))
        if len(files) != 1:
            raise SystemExit(f"pytest measured nothing:\n{done.stdout.decode()}")
        return seen_in(read_samples(files[0]))


def run_direct(url: str, conc: int) -> dict[str, Any]:
    """Our load generator without pytest around it."""
    point, prompts = prompts_for(conc)
    return seen_in(run_point(url, "scripted", point, prompts, LoadLimits()))


def seen_in(run: LoadRun) -> dict[str, Any]:
    """What a client prints, of a valid run."""
    bad = [sample.detail for sample in run.samples if not sample.ok]
    if bad or run.aborted or len(run.samples) != run.num_prompts:
        raise SystemExit(f"not a valid run: {run.aborted or bad}")
    seen = [(sample.index, sample.sent_ns, sample.event_ns.tolist()) for sample in run.samples]
    return {"seen": seen, "cpu_s": run.cpu_s}


class Bare(asyncio.Protocol):
    """The least that a client can do: write, stamp, write again."""

    def __init__(self, phase: BarePhase) -> None:
        self.phase = phase
        self.index = -1
        self.stamps: list[int] = []
        self.reads: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send_next(self) -> None:
        self.index, request = next(self.phase.queue, (-1, b""))
        self.stamps, self.reads = [], []
        self.sent_ns = time.perf_counter_ns()
        if request:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.stamps.append(time.perf_counter_ns())
        self.reads.append(data)
        if data.endswith(b"0\r\n\r\n"):
            self.phase.ended(self)
            self.send_next()


class BarePhase:
    """Requests to be sent by bare clients, and what they saw."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.queue = enumerate([b"".join(request.buffers) for request in requests])
        self.left = len(requests)
        self.seen: list[tuple[int, int, list[int], list[bytes]]] = []
        self.over = asyncio.get_running_loop().create_future()

    def ended(self, client: Bare) -> None:
        self.seen.append((client.index, client.sent_ns, client.stamps, client.reads))
        self.left -= 1
        if not self.left:
            self.over.set_result(None)


async def _run_bound(url: str, conc: int) -> dict[str, Any]:
    target = Target.from_url(url)
    _, prompts = prompts_for(conc)
    requests = render_requests(target, "scripted", VOCAB_SIZE, prompts)
    loop = asyncio.get_running_loop()
    clients: list[Bare] = []
    phase = BarePhase(())
    for _ in range(conc):
        _, client = await loop.create_connection(lambda: Bare(phase), target.host, target.port)
        clients.append(client)
    cpu_s = 0.0
    for which in (requests[: 2 * conc], requests[2 * conc :]):
        phase = BarePhase(which)
        gc.collect()
        gc.freeze()
        began_s = time.process_time()
        for client in clients:
            client.phase = phase
            client.send_next()
        await phase.over
        cpu_s = time.process_time() - began_s
    seen = []
    for index, sent_ns, stamps, reads in phase.seen:
        counts = [data.count(b'"text"') for data in reads]
        seen.append((index, sent_ns, np.repeat(stamps, counts).tolist()))
    return {"seen": seen, "cpu_s": cpu_s}


def run_bound(url: str, conc: int) -> dict[str, Any]:
    """The bare client."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_bound(url, conc))


CLIENTS = {"bound": run_bound, "ours": run_ours, "direct": run_direct}


# The comparison


@dataclass(frozen=True, slots=True)
class Errors:
    """A client's figures minus the server's, in µs, and its CPU time per token, in µs."""

    ttft_us: npt.NDArray[np.float64]
    itl_us: npt.NDArray[np.float64]
    e2e_us: npt.NDArray[np.float64]
    cpu_us: float
    real_time: bool


def measure(client: str, conc: int) -> Errors:
    """One turn: a fresh server, and a client in a process of its own."""
    with timed_server(ttft_s=TTFT_S, interval_s=INTERVAL_S, cpu=SERVER_CPU, fifo=SERVER_PRIORITY) as server:
        command = [sys.executable, __file__, "--client", client, "--url", server.url, "--conc", str(conc)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        truth = server.truth()
    found = json.loads(done.stdout)
    _, prompts = prompts_for(conc)
    sent = {
        (said["first"], said["second"]): Seen(said["received_ns"], np.array(said["event_ns"], np.int64))
        for said in truth["requests"]
    }
    pairs = []
    for index, sent_ns, event_ns in found["seen"]:
        prompt = prompts.measured[index]
        pairs.append((Seen(sent_ns, np.array(event_ns, np.int64)), sent[prompt.first, prompt.second]))
    return Errors(
        ttft_us=np.array([(a.event_ns[0] - a.began_ns) - (b.event_ns[0] - b.began_ns) for a, b in pairs]) / 1e3,
        itl_us=np.concatenate([np.diff(a.event_ns) - np.diff(b.event_ns) for a, b in pairs]) / 1e3,
        e2e_us=np.array([(a.event_ns[-1] - a.began_ns) - (b.event_ns[-1] - b.began_ns) for a, b in pairs]) / 1e3,
        cpu_us=found["cpu_s"] * 1e6 / (len(pairs) * OSL),
        real_time=bool(truth["fifo"]) and found["real_time"],
    )


def row(name: str, conc: int, errors: Errors) -> dict[str, Any]:
    """The figures of one turn; sizes of errors, whatever their sign."""
    figures: dict[str, Any] = {"client": name, "streams": conc}
    for what in ("ttft", "itl", "e2e"):
        values = np.abs(getattr(errors, f"{what}_us"))
        figures |= {f"{what} p50": float(np.median(values)), f"{what} p99": float(np.percentile(values, 99))}
    return figures | {"cpu": errors.cpu_us}


def line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def compare(streams: Sequence[int], turns: int, ours: str) -> None:
    """Print the table."""
    names = ("bound", ours)
    print(f"{ISL} ids a prompt, {OSL} tokens, TTFT {TTFT_S * 1e3:g} ms, a token every {INTERVAL_S * 1e3:g} ms; µs.\n")
    header: list[str] = []
    for conc in streams:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(turns):
            for name in names:
                errors = measure(name, conc)
                found = row(name, conc, errors)
                if not header:
                    header = list(found)
                    if not errors.real_time:
                        print("No right to real-time priority: both sides share their cores with everything else.")
                    print(line(header), line(["---"] * len(header)), sep="\n")
                print(line(list(found.values())), flush=True)
                rows[name].append(found)
        medians = {name: {key: float(np.median([r[key] for r in rows[name]])) for key in header[2:]} for name in rows}
        ratios = [medians[ours][key] / medians["bound"][key] for key in header[2:]]
        print(line([f"**{ours} / bound**", conc, *(f"**{ratio:.2f}**" for ratio in ratios)]), flush=True)


def claim_core() -> bool:
    """The client's core and priority, where we may."""
    try:
        os.sched_setaffinity(0, {CLIENT_CPU})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(CLIENT_PRIORITY))
    except (OSError, ValueError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64], help="Concurrencies to compare at")
    parser.add_argument("--turns", type=int, default=3, help="Turns of each client at each of them")
    parser.add_argument("--direct", action="store_true", help="Without pytest around our load generator")
    parser.add_argument("--client", choices=CLIENTS, help="Be a client (used by the comparison itself)")
    parser.add_argument("--url", help="Server to be a client of")
    parser.add_argument("--conc", type=int, help="Streams to be a client with")
    options = parser.parse_args()
    if options.client is None:
        compare(options.streams, options.turns, "direct" if options.direct else "ours")
        return
    real_time = claim_core()
    json.dump(CLIENTS[options.client](options.url, options.conc) | {"real_time": real_time}, sys.stdout)


if __name__ == "__main__":
    main()
