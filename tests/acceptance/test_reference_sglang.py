"""The packaged folder under a real SGLang: its echoed log-probabilities are the embedded engine's, but for bfloat16."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from pytest_dsr1.reference.model import Model
from tests.acceptance.conftest import Installation

pytestmark = pytest.mark.sglang

ROOT = Path(__file__).parents[2] / "pytest_dsr1" / "reference"
FOLDER = ROOT / "weights"
START_S = 300


@pytest.fixture(scope="module")
def url(sglang: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real SGLang on the CPU that serves the packaged folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {
        "--model-path": str(FOLDER),
        "--served-model-name": "reference",
        "--device": "cpu",
        "--attention-backend": "torch_native",
        "--max-total-tokens": "32768",
        "--host": "127.0.0.1",
        "--port": str(port),
    }
    words = [word for pair in flags.items() for word in pair]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("sglang") / "log"
    with log.open("wb") as sink:
        server = subprocess.Popen(
            # cached prefixes would cut the echoed log-probabilities short
            [str(sglang.python), str(sglang.scripts / "serve.py"), *words, "--disable-radix-cache", "--sleep-on-idle"],
            env=os.environ | offline | {"PYTHONPATH": str(sglang.scripts), "SGLANG_USE_CPU_ENGINE": "1"},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Asks until it answers 200; fails with the log's end when the process ends or the time is up."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=30).ok:
                return
        except requests.ConnectionError:
            time.sleep(1)  # a process that starts offers nothing to wait on but its port
    pytest.fail(f"SGLang did not become healthy within {START_S} s:\n{log.read_text()[-4000:]}")


def echoed(url: str, ids: list[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, as SGLang echoes them."""
    body = {"model": "reference", "prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    reply = requests.post(f"{url}/v1/completions", json=body, timeout=120)
    reply.raise_for_status()
    entries = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert len(entries) == len(ids) + 1
    return [float(entry) for entry in entries[1:-1]]


def test_heldout_text_has_the_same_logprobs(url: str) -> None:
    """Token for token within bfloat16's error on average, and in the sum to a fraction of the gate's width."""
    bpe, model = Tokenizer.from_file(str(FOLDER / "tokenizer.json")), Model.load(FOLDER)
    theirs: list[float] = []
    ours: list[float] = []
    for line in (ROOT / "heldout.jsonl").read_text().splitlines()[:12]:
        ids = [1, *bpe.encode(json.loads(line)["text"]).ids]
        theirs += echoed(url, ids)
        with threadpool_limits(1):
            ours += model.logprobs(ids)[np.arange(len(ids) - 1), ids[1:]].tolist()
    off, change = np.abs(np.subtract(theirs, ours)), math.fsum(theirs) / math.fsum(ours) - 1
    print(f"{len(off)} tokens: off by {off.mean():.4f} on average, {off.max():.2f} at most; sum {change:+.3%}")  # -rP
    # transformers in bfloat16 against itself in float32: 0.004 on average, 0.38 at most
    assert off.mean() < 0.01
    assert abs(change) < 0.003
