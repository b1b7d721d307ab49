"""The corpora that accuracy is measured on, as documents and tasks."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import msgspec

#: WikiText-2 raw, test split, in chunks of 2,047 Llama-2 tokens: the task of the published baselines.
WIKITEXT_TASK = "wikitext-2047-chunks"
#: The embedded engine's task: held-out text of the grammar that its model is trained on.
HELDOUT_TASK = "dsr1-heldout"
#: lm-eval's default for the tokens of a request: a window, its prefix token and the one generated token.
MAX_LENGTH = 2048

WIKITEXT_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
#: SHA-256 of the 4,358 rows joined by two newlines, UTF-8 (1,294,336 characters).
WIKITEXT_SHA256 = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"


class AccuracyError(Exception):
    """Accuracy could not be measured; says what was tried, the result and the remedy."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that gets one log-likelihood.

    :param words: Its number of words for `word_perplexity`; the task defines what a word is.
    """

    text: str
    words: int

    @property
    def bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class AccuracyTask:
    """Documents to score.

    :param name: The name under which baselines are looked up.
    :param max_length: Largest number of tokens of a request, prompt and generated token together. Longer documents are
        cut into disjoint windows, as lm-eval does.
    """

    name: str
    documents: tuple[Document, ...]
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        if not self.words:
            raise AccuracyError(f"the corpus of the accuracy task {self.name} is empty")
        if self.max_length < 3:
            raise AccuracyError(
                f"a context of {self.max_length} tokens is too short for {self.name}: at least 3 are needed"
            )

    @property
    def words(self) -> int:
        return sum(document.words for document in self.documents)

    @property
    def bytes(self) -> int:
        return sum(document.bytes for document in self.documents)

    def first(self, limit: int | None) -> AccuracyTask:
        """The task of the first documents, with a name of its own.

        :param limit: Their number, at least 1; None for all of them.
        """
        if limit is None:
            return self
        return replace(self, name=f"{self.name}[:{limit}]", documents=self.documents[:limit])

    def within(self, context_length: int | None) -> AccuracyTask:
        """The same documents for a server with this context length; None: not known.

        Shorter windows give worse scores, so a context shorter than `max_length` makes a task with a name of its own.
        """
        if context_length is None or context_length >= self.max_length:
            return self
        return replace(self, name=f"{self.name}@{context_length}", max_length=context_length)


def task_for(*, reference: bool, data: Path | None = None, limit: int | None = None) -> AccuracyTask:
    """Make the task of a sweep: WikiText, or the embedded engine's own corpus.

    :param reference: Whether the embedded engine serves.
    :param data: `--accuracy-data`, rows of WikiText-2 raw (see `read_rows`); with them the task is always WikiText.
    :param limit: `--accuracy-limit`.
    :raises AccuracyError: if the corpus cannot be read, or is not the expected one.
    """
    task = heldout_task() if reference and data is None else wikitext_task(data)
    return task.first(limit)


def wikitext_task(data: Path | None = None) -> AccuracyTask:
    """Make the WikiText task: 167 documents, 341,663 words, 1,296,248 bytes.

    A word is one Llama-2 token of the chunk, BOS included. The boundaries of the chunks are read from a table, because
    access to that tokenizer is restricted.

    :param data: A file with the rows (see `read_rows`); by default the hub's data set.
    """
    rows, origin = (_hub_rows(), "/".join(WIKITEXT_HUB)) if data is None else (read_rows(data), str(data))
    text = "\n\n".join(rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != WIKITEXT_SHA256:
        raise AccuracyError(
            f"{origin} is not the test split of WikiText-2 raw: {len(rows):,} rows, {len(text):,} characters, "
            f"sha256 {digest}, expected 4,358 rows, 1,294,336 characters, sha256 {WIKITEXT_SHA256} "
            "(rows joined by two newlines). Pass the unaltered rows with --accuracy-data PATH"
        )
    cuts = csv.DictReader(resources.files(__package__).joinpath("wikitext2_chunks.csv").read_text().splitlines())
    chunks = ((int(cut["start"]), int(cut["length"]), int(cut["tokens"])) for cut in cuts)
    documents = tuple(Document(text[start : start + length], tokens) for start, length, tokens in chunks)
    return AccuracyTask(WIKITEXT_TASK, documents)


def heldout_task(path: Path | None = None) -> AccuracyTask:
    """Make the embedded engine's task; its words are separated by white space.

    :param path: Rows, one per document; by default the corpus that comes with the engine.
    """
    if path is None:
        path = Path(str(resources.files("pytest_dsr1.reference").joinpath("heldout.jsonl")))
    return AccuracyTask(HELDOUT_TASK, tuple(Document(text, len(text.split())) for text in read_rows(path)))


class _Row(msgspec.Struct):
    text: str


def read_rows(path: Path) -> list[str]:
    """Read a file with one JSON object `{"text": …}` per line.

    :raises AccuracyError: if the file cannot be read, or a line is not such an object; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AccuracyError(f"the accuracy corpus {path} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [msgspec.json.decode(line, type=_Row).text] if line else []
        except msgspec.DecodeError as error:
            raise AccuracyError(f'{path}:{number}: expected {{"text": …}}, found {line[:60]!r} ({error})') from None
    return rows


def _hub_rows() -> list[str]:
    # Imported here: it takes a second of CPU, which a corpus from a file does not need.
    import datasets

    name, config, split = WIKITEXT_HUB
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        return list(datasets.load_dataset(name, config, split=split)["text"])
    # The hub's client, its HTTP library and the data set's builder raise unrelated exceptions.
    except Exception as error:
        raise AccuracyError(
            f"WikiText could not be loaded from the hub ({name}, {config}): {type(error).__name__}: {error}. "
            'If the hub cannot be reached, pass the rows as --accuracy-data PATH, one {"text": …} per line'
        ) from error
    finally:
        if not bars:
            datasets.utils.enable_progress_bars()
