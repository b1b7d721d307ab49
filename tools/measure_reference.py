"""Measures the embedded model on the held-out documents.

Prints its perplexity, the effect of rounding its weights, and n-grams for comparison.

python -m tools.measure_reference                # a minute: the grammar's entropy, the model, its rounded copies
python -m tools.measure_reference --ngrams       # some minutes: interpolated n-grams of 1 to 6 tokens, too
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from pytest_dsr1.reference.grammar import HELDOUT_SEED, TRAINING_SEED, Document, corpus
from pytest_dsr1.reference.model import Model
from tools.quantize_reference import SCHEMES, quantised_copy

Ids: TypeAlias = npt.NDArray[np.int64]

WEIGHTS: Final = Path("pytest_dsr1/reference/weights")
HELDOUT: Final = Path("pytest_dsr1/reference/heldout.jsonl")
NGRAM_DOCUMENTS: Final = 50_000
"""About 18 million tokens."""
LONGEST: Final = 6
TOKEN_BITS: Final = 10
"""A token id fits: six of them are one int64."""
BOS: Final = 1


@dataclass(frozen=True)
class Figures:
    """A total negative log-likelihood as lm-eval's three figures.

    :param bits_per_byte: Bits over bytes.
    :param byte_perplexity: Two to that power.
    :param word_perplexity: Two to the power of bits over words, where spaces and line breaks part words.
    """

    bits_per_byte: float
    byte_perplexity: float
    word_perplexity: float

    @classmethod
    def of(cls, nats: float, documents: Iterable[Document]) -> Figures:
        """Computes them for the texts that were scored."""
        texts = [document.text for document in documents]
        return cls.per(nats, sum(map(len, texts)), sum(len(text.split()) for text in texts))

    @classmethod
    def per(cls, nats: float, size: int, words: int) -> Figures:
        """Computes them for texts of so many bytes and words."""
        return cls(nats / math.log(2) / size, math.exp(nats / size), math.exp(nats / words))

    def line(self, name: str, base: Figures | None = None) -> str:
        """One row of a table; with a base, the changes against it in percent."""
        row = f"{name:24} {self.bits_per_byte:10.5f} {self.byte_perplexity:10.5f} {self.word_perplexity:10.4f}"
        if base is None:
            return row
        pairs = zip(vars(self).values(), vars(base).values(), strict=True)
        return row + "".join(f" {100 * (mine / its - 1):+10.3f} %" for mine, its in pairs)


def model_nats(folder: Path, documents: Iterable[Document], bpe: Tokenizer) -> float:
    """Negative log-likelihood of whole documents behind a BOS, by the embedded engine."""
    model, nats = Model.load(folder), 0.0
    for document in documents:
        ids = np.array([BOS, *bpe.encode(document.text).ids])
        nats -= float(model.logprobs(ids[:-1])[np.arange(len(ids) - 1), ids[1:]].sum(dtype=np.float64))
    return nats


class KneserNey:
    """Interpolated Kneser-Ney n-grams of every order up to LONGEST.

    One discount per order (Chen & Goodman).

    An n-gram is one integer, its first token the highest digit.
    """

    def __init__(self, documents: Iterable[Document], bpe: Tokenizer) -> None:
        texts = [padded(document, bpe) for document in documents]
        self._tokens: dict[int, tuple[Ids, Ids]] = {}
        self._types: dict[int, tuple[Ids, Ids]] = {}
        for order in range(1, LONGEST + 1):
            keys, counts = np.unique(np.concatenate([grams(ids, order) for ids in texts]), return_counts=True)
            self._tokens[order] = keys, counts
            if order > 1:
                # how many different tokens came before each shorter n-gram
                self._types[order - 1] = np.unique(keys & ((1 << TOKEN_BITS * (order - 1)) - 1), return_counts=True)

    def nats(self, documents: Iterable[Document], bpe: Tokenizer, order: int) -> float:
        """Negative log-likelihood of the documents by n-grams of at most that order."""
        return float(-sum(np.log(self._probabilities(padded(each, bpe), order)).sum() for each in documents))

    def _probabilities(self, ids: Ids, longest: int) -> npt.NDArray[np.float64]:
        found = np.full(len(ids) - (LONGEST - 1), 2.0**-TOKEN_BITS)
        for order in range(1, longest + 1):
            keys, counts = (self._tokens if order == longest else self._types)[order]
            once, twice = (int((counts == times).sum()) for times in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.0
            heads, starts = np.unique(keys >> TOKEN_BITS, return_index=True)
            totals, kinds = np.add.reduceat(counts, starts), np.diff(starts, append=len(keys))
            wanted = grams(ids, order)
            seen = np.maximum(lookup(keys, counts, wanted) - discount, 0.0)
            total, kind = (lookup(heads, values, wanted >> TOKEN_BITS) for values in (totals, kinds))
            mixed = (seen + discount * kind * found) / np.maximum(total, 1)
            found = np.where(total > 0, mixed, found)
        return found


def padded(document: Document, bpe: Tokenizer) -> Ids:
    """Token ids behind as many BOS as the longest context needs."""
    return np.array([BOS] * (LONGEST - 1) + bpe.encode(document.text).ids)


def grams(ids: Ids, order: int) -> Ids:
    """The n-gram that ends at each token of the text, the leading BOS left out."""
    key = np.zeros(len(ids) - (LONGEST - 1), np.int64)
    for back in range(order - 1, -1, -1):
        key = key << TOKEN_BITS | ids[LONGEST - 1 - back : len(ids) - back]
    return key


def lookup(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """Values of the wanted keys, 0 for those that are not there. keys: sorted."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--ngrams", action="store_true", help="Also build and score n-grams")
    options = parser.parse_args()
    count = len(HELDOUT.read_text().splitlines())
    documents = list(corpus(HELDOUT_SEED, count))
    bpe = Tokenizer.from_file(str(options.weights / "tokenizer.json"))
    print(f"{'':24} {'bits/byte':>10} {'byte ppl':>10} {'word ppl':>10}   change against the model")
    print(Figures.of(sum(each.bits for each in documents) * math.log(2), documents).line("the grammar's entropy"))
    base = Figures.of(model_nats(options.weights, documents, bpe), documents)
    print(base.line("the model"))
    with TemporaryDirectory() as scratch:
        for scheme in SCHEMES:
            copy = quantised_copy(options.weights, Path(scratch) / scheme, scheme)
            print(Figures.of(model_nats(copy, documents, bpe), documents).line(f"its {scheme} copy", base))
    if options.ngrams:
        table = KneserNey(corpus(TRAINING_SEED, NGRAM_DOCUMENTS), bpe)
        for order in range(1, LONGEST + 1):
            print(Figures.of(table.nats(documents, bpe, order), documents).line(f"{order}-grams", base))


if __name__ == "__main__":
    main()
