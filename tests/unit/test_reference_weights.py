"""The packaged model: small, loadable offline, with the documented quality."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from pytest_dsr1.reference.grammar import HELDOUT_SEED, Document, corpus
from pytest_dsr1.reference.model import Model
from tools.quantize_reference import narrowed, quantised_copy, widened

FOLDER = Path(__file__).parents[2] / "pytest_dsr1" / "reference" / "weights"
#: Enough of the held-out documents to tell good from bad, few enough for a second.
DOCUMENTS = tuple(corpus(HELDOUT_SEED, 20))


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As in the engine's process."""
    with threadpool_limits(1):
        yield


@cache
def token_ids(document: Document) -> list[int]:
    """The document behind a BOS."""
    return [1, *Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(document.text).ids]


@cache
def bits_per_byte(folder: Path) -> float:
    """Of DOCUMENTS, by the embedded engine."""
    model, nats = Model.load(folder), 0.0
    for document in DOCUMENTS:
        ids = np.array(token_ids(document))
        nats -= float(model.logprobs(ids[:-1])[np.arange(len(ids) - 1), ids[1:]].sum(dtype=np.float64))
    return nats / math.log(2) / sum(len(document.text) for document in DOCUMENTS)


class TestFolder:
    """Hugging Face's layout."""

    def test_takes_little_of_the_package(self) -> None:
        """At most 8 MB in all."""
        assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000

    def test_every_tensor_is_bfloat16(self) -> None:
        """Readers need to know one type."""
        with safetensors.safe_open(FOLDER / "model.safetensors", "numpy") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in sorted(tensors.keys())} == {"BF16"}


class TestTokenizer:
    """As transformers and tokenizers load it."""

    def test_adds_no_token_of_its_own(self) -> None:
        """Text becomes its tokens only; BOS and EOS exist, and neither has the id 0."""
        tokenizer = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
        assert tokenizer(DOCUMENTS[0].text)["input_ids"] == token_ids(DOCUMENTS[0])[1:]
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
        assert len(tokenizer) == 1024

    @pytest.mark.parametrize("text", [DOCUMENTS[0].text, "Grüße, 日本: 42.\n\t ", " 7 07\u0000"])
    def test_gives_back_any_text(self, text: str) -> None:
        """Byte-level: words that the grammar never wrote, too."""
        bpe = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        assert bpe.decode(bpe.encode(text).ids) == text


class TestQuality:
    """The figures that the documentation promises."""

    def test_comes_near_the_entropy_of_its_grammar(self) -> None:
        """At most 0.43 bits per byte, and 1.1 times what is in the text."""
        entropy = sum(each.bits for each in DOCUMENTS) / sum(len(each.text) for each in DOCUMENTS)
        assert entropy < bits_per_byte(FOLDER) < min(0.43, 1.1 * entropy)

    def test_careful_rounding_does_not_show(self, tmp_path: Path) -> None:
        """int8 per channel changes bits per byte by less than 0.3 %: a gate must pass it."""
        copy = quantised_copy(FOLDER, tmp_path / "int8", "int8")
        assert bits_per_byte(copy) == pytest.approx(bits_per_byte(FOLDER), rel=0.003)

    def test_reckless_rounding_shows(self, tmp_path: Path) -> None:
        """int4 with one scale for all at least doubles it: a gate must fail it."""
        copy = quantised_copy(FOLDER, tmp_path / "int4", "int4")
        assert bits_per_byte(copy) > 2 * bits_per_byte(FOLDER)


class TestRounding:
    """bfloat16, which NumPy lacks."""

    def test_widening_and_narrowing_change_nothing(self) -> None:
        """Every finite bfloat16 survives the way to float32 and back."""
        bits = np.arange(1 << 16, dtype="<u2")
        finite = bits[(bits & 0x7F80) != 0x7F80]
        assert narrowed(widened(finite.tobytes(), [len(finite)])) == finite.tobytes()

    def test_narrowing_rounds_to_nearest_ties_to_even(self) -> None:
        """1 + 2^-8 lies halfway and is rounded to even; a little more is rounded up."""
        values = np.array([1 + 2**-8, 1 + 2**-8 + 2**-20, 1 + 3 * 2**-8], np.float32)
        assert widened(narrowed(values), [3]).tolist() == [1.0, 1 + 2**-7, 1 + 2**-6]
