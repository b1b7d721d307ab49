"""The tool that measures a baseline without a server; transformers is a stand-in."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.accuracy.documents import AccuracyTask, Document
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from tools.measure_reference import Figures
from tools.measure_transformers import score, windows

WEIGHTS = Path(__file__).parents[2] / "pytest_dsr1" / "reference" / "weights"

#: A Python that has transformers, as far as can be told from outside: half a nat for each scored token.
STAND_IN = f"""#!{sys.executable}
import json, sys
print("a library says hello")
windows = json.load(sys.stdin)["windows"]
print(json.dumps({{
    "log_likelihoods": [-0.5 * len(scored) for context, scored in windows],
    "class": "Stub", "dtype": "float32", "transformers": "5", "torch": "2",
}}))
"""


def bytes_as_ids(text: str) -> list[int]:
    return list(text.encode())


def test_every_token_is_scored_once_behind_the_prefix_token() -> None:
    """Long documents are cut; each window has a token of context and room for one."""
    task = AccuracyTask("t", (Document("abcdefgh", 8), Document("xyz", 3)), max_length=5)
    asked = list(windows(task, Tokenizer(bytes_as_ids, 0, "bytes")))
    assert [(bytes(context), bytes(scored)) for context, scored in asked] == [
        (b"\0", b"abc"),
        (b"c", b"def"),
        (b"ef", b"gh"),
        (b"\0", b"xyz"),
    ]
    assert all(len(context) + len(scored) < task.max_length for context, scored in asked)


@given(st.text(max_size=60), st.integers(3, 20))
def test_windows_of_any_text(text: str, max_length: int) -> None:
    """All tokens are scored, in order, and no request is longer than the task's."""
    asked = list(
        windows(AccuracyTask("t", (Document(text, 1),), max_length=max_length), Tokenizer(bytes_as_ids, 0, "-"))
    )
    assert [token for _, scored in asked for token in scored] == bytes_as_ids(text)
    assert all(context and len(context) + len(scored) < max_length for context, scored in asked)


def test_the_last_line_is_the_answer(tmp_path: Path) -> None:
    """Libraries print what they like before."""
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    scored = score(WEIGHTS, "auto", AccuracyTask("t", (Document("The old man went home.", 5),)), stand_in)
    assert scored.tokens > 0
    assert scored.nats == 0.5 * scored.tokens
    assert scored.source == "transformers 5 (Stub, float32, torch 2)"


def test_a_python_that_cannot_score_is_named(tmp_path: Path) -> None:
    """With the option that names another."""
    with pytest.raises(SystemExit, match=r"absent.*--torch-python"):
        score(WEIGHTS, "auto", AccuracyTask("t", (Document("a", 1),)), tmp_path / "absent")


def test_the_figures_are_those_of_the_gate() -> None:
    """One bit a byte, in texts of two bytes a word."""
    assert Figures.per(8 * math.log(2), 8, 4) == pytest.approx(Figures(1.0, 2.0, 4.0))
