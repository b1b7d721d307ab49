"""Wall clock of a sweep on two servers compared with one server.

    python benchmarks/workers.py [--turns 3]

Two scripted servers with fixed token times stand for two machines: the time of a request does not depend on the load of
the other server. The same sweep runs on one server (A) and on both with `-n 2` (B), in turns A B A B. One worker gets
three of the five concurrencies, so the best possible ratio is 0.6. Prints B / A of each turn, and the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, from a checkout that need not be installed

from tests.servers.timed import timed_server  # noqa: E402

#: One wave of requests takes 0.24 s, whatever the concurrency: each takes as long as every other.
TTFT_S, INTERVAL_S, OSL = 0.1, 0.02, 8


def sweep(reports: Path, *args: str) -> float:
    """Run it; the wall clock in seconds."""
    command = [
        *(sys.executable, "-m", "pytest", "tests_bench", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"),
        *("--scenario", f"16/{OSL}", "--accuracy", "off", "--reports-dir", str(reports), *args),
    ]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}\n{done.stdout}")
    return took


def point_s(reports: Path) -> dict[int, float]:
    """Seconds of each concurrency's own tests, as the batch folder has them."""
    batch = json.loads(next(reports.glob("batch_*/batch.json")).read_text())
    return {point["conc"]: point["elapsed_s"] for point in batch["batch"]["points"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    ratios = []
    with (
        timed_server(ttft_s=TTFT_S, interval_s=INTERVAL_S) as one,
        timed_server(ttft_s=TTFT_S, interval_s=INTERVAL_S) as other,
    ):
        for turn in range(turns):
            with tempfile.TemporaryDirectory() as folder:
                alone, both = Path(folder, "alone"), Path(folder, "both")
                serial_s = sweep(alone, "--server-url", one.url)
                parallel_s = sweep(both, "--server-url", one.url, "--server-url", other.url, "-n", "2")
                seconds = point_s(alone)
            ratios.append(parallel_s / serial_s)
            print(
                f"turn {turn + 1}: alone {serial_s:.1f} s, both {parallel_s:.1f} s, ratio {ratios[-1]:.3f}", flush=True
            )
            print("   seconds of each concurrency alone: " + ", ".join(f"{c}: {s:.1f}" for c, s in seconds.items()))
    print(f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
