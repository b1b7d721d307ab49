"""Errors and CPU cost of the load generator, compared with a minimal client.

    python benchmarks/load.py

A scripted server records when it received each request and sent each token, on the clock that its clients read. Two
clients take turns, A B A B: the load generator, and a bare protocol on uvloop that only takes the time of each read.
The table has the differences between the client's and the server's figures, and the client's CPU time per token.

The server runs on core 0 with SCHED_FIFO 50, the client on core 1 with SCHED_FIFO 20, so that neither waits for another
process. The table says so if the permission for this is missing.
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
from pytest_dsr1.load.client import Target  # noqa: E402
from pytest_dsr1.load.closed_loop import run_point  # noqa: E402
from pytest_dsr1.load.prompts import PointPrompts, Request, plan_prompts, render_requests  # noqa: E402
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
    """Times of one request at the client or the server: its start and events, in ns."""

    began_ns: int
    event_ns: npt.NDArray[np.int64]


def prompts_for(conc: int) -> tuple[Point, PointPrompts]:
    """A point and the prompts that both clients send."""
    config = SweepConfig(
        scenarios=(Scenario(ISL, OSL),), concurrencies=(conc,), num_prompts=WAVES * conc, prompt_seed=SEED
    )
    point = config.points[0]
    return point, plan_prompts(config, VOCAB_SIZE).at(point)


# The clients. Each runs in a process of its own and prints what it measured, by the index of the request.


def run_ours(url: str, conc: int) -> dict[str, Any]:
    """The load generator, run through pytest as users run it."""
    asked = {"isl": ISL, "osl": OSL, "conc": conc, "num-prompts": WAVES * conc, "server-url": url}
    asked |= {"accuracy": "off", "prompt-seed": SEED}
    with tempfile.TemporaryDirectory() as reports:
        options = [f"--{name}={value}" for name, value in (asked | {"reports-dir": reports}).items()]
        # Neither its output nor its exit status matters here, only the samples.
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", *options], cwd=ROOT, stdout=subprocess.PIPE)
        files = list(Path(reports).glob("batch_*/samples_*.npz"))
        if len(files) != 1:
            raise SystemExit(f"pytest measured nothing:\n{done.stdout.decode()}")
        return seen_in(read_samples(files[0]))


def run_direct(url: str, conc: int) -> dict[str, Any]:
    """The load generator without pytest."""
    point, prompts = prompts_for(conc)
    return seen_in(run_point(url, "scripted", point, prompts, LoadLimits()))


def seen_in(run: LoadRun) -> dict[str, Any]:
    """What a client prints; ends the process if the run is not valid."""
    bad = [sample.detail for sample in run.samples if not sample.ok]
    if bad or run.aborted or len(run.samples) != run.num_prompts:
        raise SystemExit(f"not a valid run: {run.aborted or bad}")
    seen = [(sample.index, sample.sent_ns, sample.event_ns.tolist()) for sample in run.samples]
    return {"seen": seen, "cpu_s": run.cpu_s}


class Bare(asyncio.Protocol):
    """A minimal client: writes, takes the time of each read, writes again."""

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
    """Requests to be sent by bare clients, and what they recorded."""

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
    requests = render_requests(target.path, target.authority, "scripted", prompts)
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
    """A client's figures minus the server's, and its CPU time per token, in µs."""

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
    """The figures of one turn: percentiles of the absolute errors."""
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
                        print("No permission for real-time priority: other processes share the cores of both sides.")
                    print(line(header), line(["---"] * len(header)), sep="\n")
                print(line(list(found.values())), flush=True)
                rows[name].append(found)
        medians = {name: {key: float(np.median([r[key] for r in rows[name]])) for key in header[2:]} for name in rows}
        ratios = [medians[ours][key] / medians["bound"][key] for key in header[2:]]
        print(line([f"**{ours} / bound**", conc, *(f"**{ratio:.2f}**" for ratio in ratios)]), flush=True)


def claim_core() -> bool:
    """Take the client's core and priority; False if that is not permitted."""
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
    parser.add_argument("--direct", action="store_true", help="Run the load generator without pytest")
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
