"""The embedded engine against transformers in float32, on the packaged weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from pytest_dsr1.reference.model import Model

torch = pytest.importorskip("torch", reason="transformers computes with torch, which is not installed here")

ROOT = Path(__file__).parents[2] / "pytest_dsr1" / "reference"
FOLDER = ROOT / "weights"
CLOSE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For NumPy and torch alike: more fight over a shared machine."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def engine() -> Model:
    return Model.load(FOLDER)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, dict[str, Any]]:
    """Transformers' model and what it has to say about the folder."""
    from transformers import DeepseekV3ForCausalLM

    model, remarks = DeepseekV3ForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    return model.eval(), remarks


def heldout_ids(count: int) -> list[int]:
    """Held-out documents, one after the other as in training."""
    bpe = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids: list[int] = []
    for line in (ROOT / "heldout.jsonl").read_text().splitlines():
        ids += [1, *bpe.encode(json.loads(line)["text"]).ids, 2]
    return ids[:count]


def largest_difference(engine: Model, theirs: Any, ids: list[int]) -> float:
    """Over the log-probabilities of the whole vocabulary at every position."""
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()
    largest = float(np.abs(engine.logprobs(ids) - expected).max())
    print(f"{len(ids)} tokens: largest difference of a log-probability {largest:.1e}")  # shown by -rP
    return largest


def test_loads_without_a_name_too_many_or_too_few(loaded: tuple[Any, dict[str, Any]]) -> None:
    """The folder is what the architecture's own loader expects."""
    assert not any(loaded[1].values()), loaded[1]


@pytest.mark.parametrize("count", [1, 40, 500, 2000])
def test_text_has_the_same_logprobs(engine: Model, loaded: tuple[Any, dict[str, Any]], count: int) -> None:
    """Held-out text, short and longer than any window of the training."""
    assert largest_difference(engine, loaded[0], heldout_ids(count)) < CLOSE


def test_any_tokens_have_the_same_logprobs(engine: Model, loaded: tuple[Any, dict[str, Any]]) -> None:
    """Tokens at random, as the load generator sends them, exercise every expert."""
    ids = np.random.default_rng(0).integers(0, 1024, 1000).tolist()
    assert largest_difference(engine, loaded[0], ids) < CLOSE
