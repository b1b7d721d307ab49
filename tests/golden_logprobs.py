"""Log-probabilities of held-out text by the packaged model, kept to compare with.

``python -m tests.golden_logprobs`` writes them anew: after the model was trained anew, and for no other reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_dsr1.reference.model import Model
from pytest_dsr1.reference.process import WEIGHTS
from pytest_dsr1.reference.text import Vocabulary

GOLDEN = Path(__file__).parent / "data" / "golden_logprobs.json"
HELD_OUT = WEIGHTS.parent / "heldout.jsonl"
#: Enough for every expert to be used and for what was said before to come back.
DOCUMENTS, TOKENS = 4, 192


def score(model: Model, ids: list[int]) -> npt.NDArray[np.float32]:
    """The log-probability of each id but the first. shape (len(ids) - 1,)"""
    rows = model.logprobs(ids)
    return rows[np.arange(len(ids) - 1), ids[1:]]


def load() -> list[dict[str, Any]]:
    """The kept documents, each with `ids` and `logprobs`."""
    documents: list[dict[str, Any]] = json.loads(GOLDEN.read_text())["documents"]
    return documents


def main() -> None:
    """Write the file."""
    model = Model.load(WEIGHTS)
    vocabulary = Vocabulary.load(WEIGHTS, model.config.vocab_size)
    lines = HELD_OUT.read_text().splitlines()
    documents = []
    for line in lines[:: len(lines) // DOCUMENTS][:DOCUMENTS]:
        ids = vocabulary.encode(json.loads(line)["text"])[:TOKENS]
        documents.append({"ids": ids, "logprobs": [round(float(value), 5) for value in score(model, ids)]})
    GOLDEN.parent.mkdir(exist_ok=True)
    body = ",\n".join(json.dumps(document) for document in documents)
    GOLDEN.write_text(f'{{"made_by": "python -m tests.golden_logprobs", "documents": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
