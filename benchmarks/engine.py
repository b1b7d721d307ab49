"""CPU time of the embedded engine's model: decode steps, prefills, a whole sweep.

    python benchmarks/engine.py [HF_FOLDER]

Measures the CPU time of the thread, so that other work on the machine matters only through caches and memory bandwidth.
Prints the median of many steps, and the best. The server's own work (about 20 us per token, mostly the kernel's) is not
included.
"""
# ruff: noqa: E402 - BLAS must know of its one thread, and a checkout's package be found, before the imports

from __future__ import annotations

import os
import sys
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import statistics
import time

import numpy as np

from pytest_dsr1.core.config import CONCURRENCIES, WARMUPS_PER_SLOT, formula_num_prompts
from pytest_dsr1.reference.attention import Chunk, LatentCache
from pytest_dsr1.reference.model import PREFILL_TOKENS, Model
from pytest_dsr1.reference.process import WEIGHTS

ISL = OSL = 128


class Bench:
    """Measures one model."""

    def __init__(self, folder: Path) -> None:
        self.model = Model.load(folder)
        self.random = np.random.default_rng(0)

    def ids(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        return self.random.integers(0, self.model.config.vocab_size, count)

    def prefill(self, cache: LatentCache, first: int, prompts: int) -> float:
        """CPU milliseconds of one pass over `prompts` prompts, in the slots from `first`."""
        chunks = [Chunk(first + index, ISL, 1) for index in range(prompts)]
        ids = self.ids(ISL * prompts)
        start = time.thread_time()
        self.model.prefill(cache, chunks, ids)
        return (time.thread_time() - start) * 1e3

    def point(self, conc: int) -> tuple[list[float], float]:
        """CPU milliseconds of each decode step of `conc` sequences, and of one prefill."""
        cache = self.model.new_cache(conc, ISL + OSL)
        together = min(conc, PREFILL_TOKENS // ISL)
        per_prompt = statistics.median(self.prefill(cache, first, together) for first in range(0, conc, together))
        steps = []
        for _ in range(OSL - 1):
            ids = self.ids(conc)
            start = time.thread_time()
            self.model.decode(cache, ids).argmax(axis=1)
            steps.append((time.thread_time() - start) * 1e3)
        return steps, per_prompt / together


def main() -> None:
    """Print the table."""
    bench = Bench(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
    print(f"{'CONC':>4} {'ms/step':>8} {'best':>7} {'prefill ms/prompt':>18} {'sweep part s':>13}")
    total_s = 0.0
    for conc in CONCURRENCIES:
        runs = [bench.point(conc) for _ in range(3)]
        steps = [step for found, _ in runs for step in found]
        prefill = statistics.median(found for _, found in runs)
        requests = formula_num_prompts(OSL, conc) + WARMUPS_PER_SLOT * conc
        part_s = (requests / conc * (OSL - 1) * statistics.mean(steps) + requests * prefill) / 1e3
        total_s += part_s
        print(f"{conc:4} {statistics.median(steps):8.3f} {min(steps):7.3f} {prefill:18.2f} {part_s:13.1f}")
    print(f"Whole sweep at {ISL}/{OSL}: {total_s:.0f} s of CPU in the model.")
    scored = bench.ids(2048)
    start = time.thread_time()
    bench.model.logprobs(scored)
    print(f"Log-probabilities of {len(scored)} tokens: {(time.thread_time() - start) * 1e3:.0f} ms.")


if __name__ == "__main__":
    main()
