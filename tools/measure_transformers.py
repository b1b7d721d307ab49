"""Measures a Hugging Face model's accuracy without a server and writes a baseline.

python -m tools.measure_transformers FOLDER --data ROWS --limit 3 --output FILE [--torch-python PYTHON]

The documents, windows and prefix token are those that a sweep sends, the log-likelihoods are transformers'. FILE is
what --accuracy-baseline reads, for sweeps with the same --accuracy-data and --accuracy-limit. This project needs no
torch: --torch-python names a Python that has it and transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_dsr1.accuracy.documents import AccuracyTask, wikitext_task
from pytest_dsr1.accuracy.lm import windows_of
from pytest_dsr1.accuracy.tokenizer import Tokenizer, find_tokenizer
from pytest_dsr1.core.gate import AccuracyBaseline, AccuracyFigures, baselines_to_json
from pytest_dsr1.core.server import Served
from tools.measure_reference import Figures

SCORER: Final = Path(__file__).with_name("transformers_log_likelihoods.py")
DTYPES: Final = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Scored:
    """What transformers gave for a corpus, and what gave it.

    :param nats: Negative log-likelihood of all documents.
    :param tokens: How many tokens that is, prefix tokens not counted.
    :param source: Class, precision and versions, in one line.
    """

    nats: float
    tokens: int
    source: str


def windows(task: AccuracyTask, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    """(context, scored tokens) of each request that a sweep sends for `task`."""
    return ((window.context, window.scored) for window in windows_of(task, tokenizer))


def score(folder: Path, dtype: str, task: AccuracyTask, python: Path) -> Scored:
    """Let transformers predict the documents.

    :raises SystemExit: `python` lacks torch or transformers, or cannot load the folder; its own words went before.
    """
    tokenizer = find_tokenizer(str(folder), Served(url="", model=folder.name, engine="external"))
    asked = list(windows(task, tokenizer))
    try:
        reply = subprocess.run(
            [str(python), str(SCORER)],
            input=json.dumps({"folder": str(folder), "dtype": dtype, "windows": asked}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{folder} was not scored ({error}): --torch-python must name a Python with torch and a transformers that "
            "knows the model"
        ) from None
    # The last line: what a library prints comes before.
    found = json.loads(reply.stdout.splitlines()[-1])
    return Scored(
        nats=-math.fsum(found["log_likelihoods"]),
        tokens=sum(len(scored) for _, scored in asked),
        source=f"transformers {found['transformers']} ({found['class']}, {found['dtype']}, torch {found['torch']})",
    )


def context_length(folder: Path) -> int | None:
    """What the model was built for; a server of it says the same of itself."""
    length = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with config.json, weights and tokenizer")
    parser.add_argument("--model", help="as the server will name it; default: the folder's name")
    parser.add_argument("--data", type=Path, help="rows of WikiText-2 raw, as --accuracy-data; default: the hub's")
    parser.add_argument("--limit", type=int, help="documents, as --accuracy-limit; default: all of them")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as config.json says")
    parser.add_argument("--torch-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    folder = options.folder.resolve()
    task = wikitext_task(options.data).first(options.limit).within(context_length(folder))
    scored = score(folder, options.dtype, task, options.torch_python)
    figures = Figures.per(scored.nats, task.bytes, task.words)
    baseline = AccuracyBaseline(
        options.model or folder.name, task.name, AccuracyFigures(**vars(figures)), scored.source
    )
    options.output.write_text(baselines_to_json([baseline]))
    print(f"{baseline.model}, {task.name}: {scored.tokens:,} tokens, {task.bytes:,} bytes; {scored.source}")
    print(f"{'':24} {'bits/byte':>10} {'byte ppl':>10} {'word ppl':>10}")
    print(figures.line("transformers"))


if __name__ == "__main__":
    main()
