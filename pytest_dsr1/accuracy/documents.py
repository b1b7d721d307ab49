"""What accuracy is measured on: documents, and the task that they make."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from pytest_dsr1.accuracy import AccuracyError

#: The seed's task: WikiText-2 raw, test split, in chunks of 2,047 Llama-2 tokens.
WIKITEXT_TASK = "wikitext-2047-chunks"
#: The embedded engine's task: held-out text of the project's own grammar.
HELDOUT_TASK = "dsr1-heldout"
#: lm-eval's default: a window, its prefix token and the one generated token fit into so many.
MAX_LENGTH = 2048

WIKITEXT_HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
#: SHA-256 of the 4,358 rows joined by two newlines, UTF-8 (1,294,336 characters).
WIKITEXT_SHA256 = "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"


@dataclass(frozen=True, slots=True)
class Document:
    """A text with one log-likelihood.

    :param words: How many words it counts as in `word_perplexity`; the task says what a word is.
    """

    text: str
    words: int

    @property
    def bytes(self) -> int:
        """Its length in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class AccuracyTask:
    """Documents under a name, by which baselines are looked up.

    :param max_length: Tokens that a request may have, prompt and the one generated; longer documents are cut
        into disjoint windows, as lm-eval does.
    """

    name: str
    documents: tuple[Document, ...]
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        if not self.words:
            raise AccuracyError(f"the accuracy task {self.name} has no words: its corpus is empty")
        if self.max_length < 3:
            raise AccuracyError(f"a context of {self.max_length} tokens holds no window of {self.name}")

    @property
    def words(self) -> int:
        return sum(document.words for document in self.documents)

    @property
    def bytes(self) -> int:
        return sum(document.bytes for document in self.documents)

    def first(self, limit: int | None) -> AccuracyTask:
        """The first `limit` documents: a task of its own, with a name that says so; None: all of them."""
        if limit is None:
            return self
        if limit < 1:
            raise AccuracyError(f"--accuracy-limit must be at least 1, got {limit}")
        return replace(self, name=f"{self.name}[:{limit}]", documents=self.documents[:limit])

    def within(self, context_length: int | None) -> AccuracyTask:
        """The same for a server with a context of `context_length` tokens.

        Shorter windows score worse, so a context under `MAX_LENGTH` makes a task of its own. None: not known.
        """
        if context_length is None or context_length >= self.max_length:
            return self
        return replace(self, name=f"{self.name}@{context_length}", max_length=context_length)


def task_for(*, reference: bool, data: Path | None = None, limit: int | None = None) -> AccuracyTask:
    """Make the task of a sweep: WikiText; for the embedded engine its own corpus, unless data are named.

    :param data: `--accuracy-data`, rows of WikiText-2 raw (see `read_rows`).
    :raises AccuracyError: The corpus cannot be had, or is another one.
    """
    task = heldout_task() if reference and data is None else wikitext_task(data)
    return task.first(limit)


def wikitext_task(data: Path | None = None) -> AccuracyTask:
    """Make the seed's task: 167 documents, 341,663 words, 1,296,248 bytes.

    A word is one Llama-2 token of the chunk, BOS included. The cuts come from a table, since that tokenizer is gated.

    :param data: A file with the rows (see `read_rows`); without it the hub's data set.
    """
    rows, origin = (_hub_rows(), "/".join(WIKITEXT_HUB)) if data is None else (read_rows(data), str(data))
    text = "\n\n".join(rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != WIKITEXT_SHA256:
        raise AccuracyError(
            f"{origin} is not WikiText-2 raw, test split: {len(rows):,} rows, {len(text):,} characters, "
            f"sha256 {digest}, expected 4,358 rows, 1,294,336 characters, sha256 {WIKITEXT_SHA256} "
            "(rows joined by two newlines). Pass the unaltered rows with --accuracy-data"
        )
    cuts = csv.DictReader(resources.files(__package__).joinpath("wikitext2_chunks.csv").read_text().splitlines())
    documents = (
        Document(text[start : start + int(cut["length"])], int(cut["tokens"]))
        for cut in cuts
        for start in (int(cut["start"]),)
    )
    return AccuracyTask(WIKITEXT_TASK, tuple(documents))


def heldout_task(path: Path | None = None) -> AccuracyTask:
    """Make the embedded engine's task; its words are those that white space separates.

    :param path: Rows, one a document; by default the corpus that comes with the engine.
    """
    if path is None:
        path = Path(str(resources.files("pytest_dsr1.reference").joinpath("heldout.jsonl")))
    return AccuracyTask(HELDOUT_TASK, tuple(Document(text, len(text.split())) for text in read_rows(path)))


def read_rows(path: Path) -> list[str]:
    """Read a file of one JSON object `{"text": …}` a line.

    :raises AccuracyError: The file cannot be read, or a line is anything else (which line is said).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AccuracyError(f"the accuracy corpus {path} cannot be read: {error}") from None
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]


def _row(line: str, origin: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise AccuracyError(f'{origin} is not JSON ({error}); expected {{"text": …}} on each line') from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise AccuracyError(f'{origin}: expected {{"text": …}}, found {line[:60]!r}')
    return text


def _hub_rows() -> list[str]:
    # Imported here: a second of CPU that a corpus from a file does not need.
    import datasets

    name, config, split = WIKITEXT_HUB
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        return list(datasets.load_dataset(name, config, split=split)["text"])
    # The hub's client, its HTTP library and the data set's builder have a hierarchy each.
    except Exception as error:
        raise AccuracyError(
            f"WikiText could not be had from the hub ({name}, {config}): {type(error).__name__}: {error}. "
            'Where the hub is out of reach pass the rows as --accuracy-data PATH, one {"text": …} a line'
        ) from error
    finally:
        if not bars:
            datasets.utils.enable_progress_bars()
