"""Whose tokenizer makes the ids, and how many ids there are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from pytest_dsr1.accuracy.tokenizer import VocabSize, VocabularyError, find_tokenizer, find_vocab_size
from pytest_dsr1.core.server import Served
from tests.servers.echo import BOS, EchoServer, encode

#: Nothing listens there.
CLOSED = "http://127.0.0.1:9"


def served(url: str, model: str, info: Mapping[str, object] | None = None) -> Served:
    """A server of which nothing is known but these."""
    return Served(url=url, model=model, engine="external", info=info or {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder: five words, BOS (7) and EOS as added tokens, spare rows."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", "a", "b", "c", "d"])}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(text) for text in ("<pad>", "</s>", "<s>")])
    path = tmp_path / "model"
    path.mkdir()
    words.save(str(path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "config.json").write_text(json.dumps({"vocab_size": 64, "bos_token_id": 1, "eos_token_id": [2, 3]}))
    return path


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The hub, as a table of names and folders; what is not in it is not found."""
    models_there: dict[str, Path] = {}

    def download(name: str, file: str, **_: object) -> str:
        if name not in models_there:
            raise OSError(f"no {name}\nand a second line")
        path = models_there[name] / file
        if not path.exists():
            raise EntryNotFoundError(f"no {file}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return models_there


def tokenizing(text: str, special: bool) -> dict[str, Any]:
    ids = encode(text)
    return {"tokens": [BOS, *ids] if special else ids, "count": len(ids)}


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Starts a server that tokenizes with a function."""
    contexts = []

    def start(tokenize: Callable[[str, bool], Any], model: str = "some/model", **info: object) -> Served:
        context = EchoServer(tokenize=tokenize).running()
        contexts.append(context)
        return served(context.__enter__().url, model, info)

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


class TestTokenizer:
    """`find_tokenizer`."""

    def test_the_option_comes_first(self, folder: Path, serving: Callable[..., Served]) -> None:
        """`--tokenizer` is used though the server could tokenise."""
        found = find_tokenizer(str(folder), serving(tokenizing))
        assert (found.source, found.encode("a b x"), found.prefix_token_id) == (f"--tokenizer {folder}", [1, 2, 0], 7)

    def test_the_option_can_name_a_model_at_the_hub(self, folder: Path, hub: dict[str, Path]) -> None:
        """A name that is no folder is the hub's."""
        hub["org/name"] = folder
        found = find_tokenizer("org/name", served(CLOSED, "m"))
        assert found.source == "--tokenizer org/name at the hub"
        assert found.encode("c") == [3]

    @pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/.none/x"])
    def test_a_path_is_never_asked_of_the_hub(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder that is missing is said to be missing, at once."""
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
        with pytest.raises(VocabularyError, match=f"--tokenizer {name}: there is no folder"):
            find_tokenizer(name, served(CLOSED, "m"))

    def test_the_server_tokenises_and_its_bos_is_what_it_adds(self, serving: Callable[..., Served]) -> None:
        """Without an option /tokenize makes the ids, without special tokens."""
        server = serving(tokenizing)
        found = find_tokenizer(None, server)
        assert (found.source, found.prefix_token_id) == (f"{server.url}/tokenize", BOS)
        assert found.encode("ab") == [97, 98]

    def test_a_text_is_tokenised_once(self, serving: Callable[..., Served]) -> None:
        """Five evaluations of a corpus send it to the tokenizer once."""
        asked = []

        def counting(text: str, special: bool) -> dict[str, Any]:
            asked.append(text)
            return tokenizing(text, special)

        found = find_tokenizer(None, serving(counting))
        assert found.encode("corpus") == found.encode("corpus")
        assert asked.count("corpus") == 1

    def test_the_servers_word_on_bos_wins_even_if_it_is_0(self, serving: Callable[..., Served]) -> None:
        """A BOS with id 0 is a BOS."""
        assert find_tokenizer(None, serving(tokenizing, bos_token_id=0)).prefix_token_id == 0

    def test_the_named_folder_says_the_prefix_of_a_server_that_adds_none(
        self, folder: Path, serving: Callable[..., Served]
    ) -> None:
        """Ids are the server's, the prefix the folder's."""
        found = find_tokenizer(None, serving(lambda text, _: {"tokens": encode(text)}, model_path=str(folder)))
        assert (found.encode("a"), found.prefix_token_id) == ([97], 7)

    def test_the_hub_says_the_prefix_when_nobody_else_does(
        self, folder: Path, hub: dict[str, Path], serving: Callable[..., Served]
    ) -> None:
        """By the name of the served model."""
        hub["org/name"] = folder
        found = find_tokenizer(None, serving(lambda text, _: {"tokens": encode(text)}, model="org/name"))
        assert found.prefix_token_id == 7
        assert found.source.endswith("/tokenize")

    @pytest.mark.parametrize(
        ("tokenize", "complaint"),
        [
            (lambda text, _: tokenizing(text, True), "adds special tokens despite"),
            (lambda *_: {"tokens": ["a"]}, "returned no token ids"),
            (lambda *_: [], "failed .AttributeError"),
            (lambda text, _: {"tokens": encode(text)}, "name a BOS or EOS token"),
        ],
    )
    def test_a_server_that_tokenises_wrongly_is_passed_over(
        self, tokenize: Callable[[str, bool], Any], complaint: str, folder: Path, serving: Callable[..., Served]
    ) -> None:
        """The folder is used instead; without one, the error has the reason."""
        info = {} if "BOS or EOS" in complaint else {"bos_token_id": BOS}
        server = serving(tokenize, **info)
        with pytest.raises(VocabularyError, match=complaint):
            find_tokenizer(None, server)
        with_folder = served(server.url, server.model, {**info, "tokenizer_path": str(folder)})
        if "BOS or EOS" not in complaint:
            assert find_tokenizer(None, with_folder).source == str(folder)

    def test_the_folder_that_the_server_names_is_next(self, folder: Path, serving: Callable[..., Served]) -> None:
        """tokenizer_path before model_path."""
        server = served(CLOSED, "m", {"tokenizer_path": str(folder), "model_path": "/elsewhere"})
        assert find_tokenizer(None, server).source == str(folder)

    def test_the_models_name_at_the_hub_is_last(self, folder: Path, hub: dict[str, Path]) -> None:
        """What the server calls model_path is tried there too."""
        hub["org/served"] = folder
        assert find_tokenizer(None, served(CLOSED, "org/served")).source == "org/served at the hub"
        assert find_tokenizer(None, served(CLOSED, "alias", {"model_path": "org/served"})).source.startswith("org/")

    def test_a_hub_out_of_reach_is_waited_for_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then only its cache is looked into."""
        asked = []

        def unreachable(name: str, file: str, *, local_files_only: bool) -> str:
            asked.append(local_files_only)
            raise LocalEntryNotFoundError("no connection")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
        with pytest.raises(VocabularyError, match=r"the hub has no tokenizer of org/name .no connection"):
            find_tokenizer("org/name", served(CLOSED, "m"))
        assert asked == [False, True, True]

    def test_without_any_the_error_lists_what_was_tried(self) -> None:
        """And names the options."""
        with pytest.raises(VocabularyError) as error:
            find_tokenizer(None, served(CLOSED, "org/none"))
        for part in (f"{CLOSED}/tokenize failed", "the hub has no org/none (no org/none)"):
            assert part in str(error.value)
        assert "--tokenizer NAME|PATH" in str(error.value)
        assert "second line" not in str(error.value)

    def test_a_model_without_bos_begins_with_eos(self, folder: Path) -> None:
        """As lm-eval has it."""
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": None, "eos_token": "</s>"}))
        assert find_tokenizer(str(folder), served(CLOSED, "m")).prefix_token_id == 6

    @pytest.mark.parametrize(("config", "prefix"), [({"bos_token_id": 0}, 0), ({"eos_token_id": [2, 3]}, 2)])
    def test_config_json_says_the_prefix_where_the_tokenizer_does_not(
        self, folder: Path, config: dict[str, Any], prefix: int
    ) -> None:
        """A BOS with id 0 included."""
        (folder / "tokenizer_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        assert find_tokenizer(str(folder), served(CLOSED, "m")).prefix_token_id == prefix

    def test_a_folder_without_a_prefix_token_is_no_source(self, folder: Path) -> None:
        """The first token would be predicted from nothing."""
        (folder / "tokenizer_config.json").unlink()
        (folder / "config.json").unlink()
        with pytest.raises(VocabularyError, match="names neither a BOS nor an EOS token"):
            find_tokenizer(str(folder), served(CLOSED, "m"))

    def test_a_broken_tokenizer_file_is_named(self, folder: Path) -> None:
        """The error has the folder."""
        (folder / "tokenizer.json").write_text("{}")
        with pytest.raises(VocabularyError, match=r"tokenizer\.json of .*model cannot be read"):
            find_tokenizer(str(folder), served(CLOSED, "m"))


class TestVocabSize:
    """`find_vocab_size`."""

    def test_the_option_comes_first(self) -> None:
        """`--vocab-size` before what the server says."""
        assert find_vocab_size(100, served(CLOSED, "m", {"vocab_size": 7})) == VocabSize(100, "--vocab-size")

    def test_the_server_is_next(self, folder: Path) -> None:
        """`vocab_size` of /server_info before the tokenizer's."""
        tokenizer = find_tokenizer(str(folder), served(CLOSED, "m"))
        assert find_vocab_size(None, served(CLOSED, "m", {"vocab_size": 1024}), tokenizer).size == 1024

    @pytest.mark.parametrize("nonsense", [None, 0, -1, True, "1024", 10.5])
    def test_what_is_no_size_is_not_believed(self, nonsense: object, folder: Path) -> None:
        """The named folder is asked instead."""
        server = served(CLOSED, "m", {"vocab_size": nonsense, "model_path": str(folder)})
        assert find_vocab_size(None, server) == VocabSize(5, str(folder))

    def test_added_tokens_do_not_count(self, folder: Path) -> None:
        """Neither they nor spare rows of the embedding: a prompt of them is no text."""
        tokenizer = find_tokenizer(str(folder), served(CLOSED, "m"))
        assert find_vocab_size(None, served(CLOSED, "m"), tokenizer) == VocabSize(5, f"--tokenizer {folder}")

    def test_it_is_never_more_than_the_model_has_rows_for(self, folder: Path) -> None:
        """A tokenizer larger than the model would kill the server."""
        (folder / "config.json").write_text('{"vocab_size": 3}')
        assert find_vocab_size(None, served(CLOSED, "m", {"model_path": str(folder)})).size == 3

    def test_config_json_alone_will_do(self, folder: Path) -> None:
        """A folder of weights without a tokenizer."""
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        assert find_vocab_size(None, served(CLOSED, "m", {"model_path": str(folder)})).size == 64

    @pytest.mark.parametrize(
        "model",
        ["amd/DeepSeek-R1-0528-MXFP4-Preview", "deepseek-ai/DeepSeek-R1", "/data/DeepSeek-R1-0528/", "deepseek-r1"],
    )
    def test_deepseek_r1_is_known(self, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """128,000, without asking the hub."""
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
        assert find_vocab_size(None, served(CLOSED, model)).size == 128_000

    def test_the_path_of_an_alias_is_known_too(self) -> None:
        """A served model name is free; the path behind it tells."""
        server = served(CLOSED, "prod", {"model_path": "amd/DeepSeek-R1-0528-MXFP4-Preview"})
        assert find_vocab_size(None, server).size == 128_000

    def test_a_distilled_model_is_not_deepseek_r1(self) -> None:
        """Its vocabulary is its base model's."""
        with pytest.raises(VocabularyError):
            find_vocab_size(None, served(CLOSED, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"))

    def test_the_hub_is_last(self, folder: Path, hub: dict[str, Path]) -> None:
        """By the served model's name."""
        hub["org/name"] = folder
        assert find_vocab_size(None, served(CLOSED, "org/name")) == VocabSize(5, "org/name at the hub")

    def test_nobody_knows(self) -> None:
        """The error names the options; nothing is tried out on the server."""
        with pytest.raises(VocabularyError, match=r"org/none at .* is not known: .*--vocab-size N.*--tokenizer NAME"):
            find_vocab_size(None, served(CLOSED, "org/none"))


def test_names_are_each_given_once() -> None:
    """What the server reports of its files, then the model's name."""
    assert served("http://h", "m", {"tokenizer_path": "t", "model_path": "m"}).names == ("t", "m")
    assert served("http://h", "m", {"tokenizer_path": "", "model_path": 7}).names == ("m",)
