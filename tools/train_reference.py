"""Trains the embedded model; writes tokenizer, configuration and bfloat16 weights.

    python -m tools.train_reference --out pytest_dsr1/reference/weights                   # minutes on a GPU
    python -m tools.train_reference --out pytest_dsr1/reference/weights --device cpu      # under an hour on two cores

Needs torch, tokenizers, safetensors and numpy. The corpus is the project's own grammar; nothing is downloaded.
Prints one line of JSON per measurement, the last one on the stored weights widened to float32.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pytest_dsr1.reference.grammar import HELDOUT_SEED, TRAINING_SEED, Document, corpus
from tools.reference_net import CONFIG, CONTEXT, Config, Tensor, Weights, forward, initial, rotations, store, stored

Measure: TypeAlias = Callable[[int, Tensor, Tensor], None]

HELDOUT_DOCUMENTS: Final = 56
PART_DOCUMENTS: Final = 4000
"""Documents of one part of the training corpus: what one worker writes and tokenises at a time."""
BOS, EOS = CONFIG["bos_token_id"], CONFIG["eos_token_id"]


@dataclass(frozen=True)
class Recipe:
    """How much and in what portions to train.

    :param tokens: Tokens to train on in all; the learning rate falls to 0 over them.
    :param corpus: Tokens of the corpus; it is gone through as often as that takes.
    :param rows: Windows of 1,024 tokens in a step.
    :param pace: Learning rates as a share of the optimiser's; small steps are noisy and want lower ones.
    """

    tokens: int
    corpus: int
    rows: int
    pace: float


RECIPES: Final = {
    "cuda": Recipe(tokens=310_000_000, corpus=160_000_000, rows=32, pace=1.0),
    "cpu": Recipe(tokens=12_000_000, corpus=12_000_000, rows=4, pace=0.5),
}
WINDOW: Final = 1024


def make_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Trains a byte-level BPE in which each digit is a token.

    The ids 0, 1, 2 are padding, begin and end; the tokenizer does not add them.
    """
    bpe = Tokenizer(models.BPE())
    # A BOS of id 0 would be taken for a missing one by clients that write `bos or eos`: padding comes first.
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return bpe


def store_tokenizer(bpe: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, and tokenizer_config.json for transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tokenised(tokenizer: Path, seed: int, count: int) -> npt.NDArray[np.uint16]:
    """Windows of WINDOW + 1 tokens, each from the beginning of a document.

    :return: shape (windows, WINDOW + 1)
    """
    bpe = Tokenizer.from_file(str(tokenizer))
    windows: list[list[int]] = []
    row: list[int] = []
    for document in corpus(seed, count):
        row += [BOS, *bpe.encode(document.text).ids, EOS]
        if len(row) > WINDOW:
            windows.append(row[: WINDOW + 1])
            row = []
    return np.array(windows, np.uint16)


def training_windows(tokenizer: Path, tokens: int) -> npt.NDArray[np.uint16]:
    """Writes and tokenises the training corpus on all cores, in shuffled order."""
    # a document has 350 tokens, 50 of which fall past the end of its window
    parts = max(1, round(tokens / (PART_DOCUMENTS * 300)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor() as pool:
        seeds = range(TRAINING_SEED, TRAINING_SEED + parts)
        found = np.concatenate(list(pool.map(tokenised, [tokenizer] * parts, seeds, [PART_DOCUMENTS] * parts)))
    np.random.default_rng(0).shuffle(found)
    return found


def heldout_bits(weights: Weights, documents: list[Document], bpe: Tokenizer, config: Config) -> float:
    """Bits per byte of whole documents, each behind a BOS, in float32."""
    device = weights["lm_head.weight"].device
    texts = [[BOS, *bpe.encode(document.text).ids] for document in documents]
    turns = rotations(max(map(len, texts)), config, str(device))
    nats = 0.0
    with torch.no_grad():
        for ids in texts:
            row = torch.tensor(ids, device=device)
            logprobs = forward(weights, row[None], turns, config)[0][0].float().log_softmax(-1)
            nats -= float(logprobs[:-1].gather(-1, row[1:, None]).double().sum())
    return float(nats / np.log(2) / sum(len(document.text) for document in documents))


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximately nearest semi-orthogonal matrices, by five Newton-Schulz steps.

    Jordan et al. 2024, Muon.

    :param matrices: Shape (count, rows, columns).
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Muon for matrices between hidden states, AdamW for all other parameters."""

    MUON_RATE, ADAM_RATE, MOMENTUM, DECAY = 0.02, 4e-3, 0.95, 0.02

    def __init__(self, weights: Weights) -> None:
        self._moments = {}
        self._stacks: dict[tuple[int, ...], list[Tensor]] = {}
        plain = []
        for name, weight in weights.items():
            if name.endswith("correction_bias"):
                continue
            if weight.ndim > 1 and "_proj" in name:
                self._stacks.setdefault(tuple(weight.shape[-2:]), []).append(weight)
                self._moments[weight] = torch.zeros_like(weight)
            else:
                plain.append(weight)
        self._adam = torch.optim.AdamW(plain, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch has no types where it is not installed
    def step(self, factor: float) -> None:
        """Takes one step at this share of the learning rates, and clears the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = self.ADAM_RATE * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for shape, members in self._stacks.items():
            parts = []
            for weight in members:
                moment = self._moments[weight].lerp_(weight.grad, 1 - self.MOMENTUM)
                parts.append(torch.lerp(weight.grad, moment, self.MOMENTUM).view(-1, *shape))
            updates = orthogonal(torch.cat(parts)).split([len(part) for part in parts])
            rate = self.MUON_RATE * factor
            for weight, update in zip(members, updates, strict=True):
                weight.mul_(1 - rate * self.DECAY)
                weight.sub_(update.view_as(weight), alpha=rate * max(1.0, shape[0] / shape[1]) ** 0.5)
                weight.grad = None


def train(weights: Weights, windows: npt.NDArray[np.uint16], recipe: Recipe, measure: Measure) -> None:
    """Trains in place. `measure(step, loss, loads)` is called about sixty times."""
    device = weights["lm_head.weight"].device
    on_gpu = device.type == "cuda"
    turns = rotations(WINDOW, CONFIG, str(device))
    data = torch.from_numpy(windows.astype(np.int16)).to(device)
    biases = [weight for name, weight in weights.items() if name.endswith("correction_bias")]
    for name, weight in weights.items():
        weight.requires_grad_(not name.endswith("correction_bias"))

    def loss_of(weights: Weights, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            logits, loads = forward(weights, ids, turns, CONFIG)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), loads

    compiled = torch.compile(loss_of) if on_gpu else loss_of
    optimiser = Optimiser(weights)
    steps, steps_in_epoch = recipe.tokens // (recipe.rows * WINDOW), len(data) // recipe.rows
    order = torch.arange(len(data), device=device)
    for step in range(steps):
        if step % steps_in_epoch == 0:
            order = torch.randperm(len(data), device=device)
        at = step % steps_in_epoch * recipe.rows
        rows = data[order[at : at + recipe.rows]].long()
        ids, targets = rows[:, :-1], rows[:, 1:]
        loss, loads = compiled(weights, ids, targets)
        loss.backward()
        # a short warm-up, then level, then a straight line to 0
        factor = min(1.0, (step + 1) / 100, (1 - step / steps) / 0.6)
        optimiser.step(recipe.pace * factor)
        # DeepSeek-V3's balancing without a loss: the bias of an expert with too few tokens rises, and the reverse
        for bias, load in zip(biases, loads, strict=True):
            bias += 2e-3 * factor * torch.sign(load.mean() - load)
            bias -= bias.mean()
        if step % max(1, steps // 60) == 0:
            measure(step, loss.detach(), loads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder to write")
    parser.add_argument("--device", choices=sorted(RECIPES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, help="Tokens to train on; 0 writes random weights")
    parser.add_argument("--tokenizer", type=Path, help="A tokenizer.json to keep, in the place of a new one")
    parser.add_argument("--heldout", type=Path, help="Also write the documents it is measured on there, a JSON a line")
    options = parser.parse_args()
    recipe = RECIPES[options.device]
    if options.tokens is not None:
        recipe = replace(recipe, tokens=options.tokens, corpus=min(options.tokens, recipe.corpus))
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    began = time.perf_counter()

    def say(**figures: object) -> None:
        times = {"at_s": round(time.perf_counter() - began, 1), "cpu_s": round(time.process_time(), 1)}
        print(json.dumps(times | figures), flush=True)

    if options.tokenizer:
        bpe = Tokenizer.from_file(str(options.tokenizer))
    else:
        bpe = make_tokenizer(document.text for document in corpus(TRAINING_SEED, 3000))
    store_tokenizer(bpe, options.out)
    heldout = list(corpus(HELDOUT_SEED, HELDOUT_DOCUMENTS))
    if options.heldout:
        options.heldout.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in heldout))
    size = sum(len(document.text) for document in heldout)
    entropy = sum(document.bits for document in heldout) / size
    lengths = [len(bpe.encode(document.text).ids) for document in heldout]
    say(heldout_bytes=size, heldout_tokens=sum(lengths), longest=max(lengths), entropy_bits_per_byte=round(entropy, 4))

    if recipe.tokens == 0:
        weights = initial(CONFIG, options.device)
    else:
        # before the device is touched: the workers are forks of this process
        windows = training_windows(options.out / "tokenizer.json", recipe.corpus)
        say(windows=len(windows), tokens=len(windows) * WINDOW)
        weights = initial(CONFIG, options.device)

        def measure(step: int, loss: Tensor, loads: Tensor) -> None:
            bits = heldout_bits(weights, heldout, bpe, CONFIG)
            shares = (loads / loads.sum(-1, keepdim=True)).flatten()
            spread = [round(float(shares.min()), 3), round(float(shares.max()), 3)]
            tokens = (step + 1) * recipe.rows * WINDOW
            say(step=step, tokens=tokens, loss=round(float(loss), 4), bits_per_byte=round(bits, 4), expert_share=spread)

        train(weights, windows, recipe, measure)
    store(weights, options.out, CONFIG)
    bits = heldout_bits(stored(options.out, CONFIG), heldout, bpe, CONFIG)
    say(stored_bits_per_byte=round(bits, 5), times_entropy=round(bits / entropy, 4))


if __name__ == "__main__":
    main()
