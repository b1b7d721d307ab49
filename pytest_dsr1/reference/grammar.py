"""A small grammar that generates documents and computes their exact entropy.

It writes stories, ledgers, sums, brackets and lists. Every random choice of a document goes through a `_Pen`, which
adds up -log2 of the choice's probability. Different sequences of choices give different texts, so the sum is the
information content of the text: no model can need fewer bits on average.
Names, numbers and things are repeated within a document, far from where they were drawn. A model with attention can
look them up; a model with a short context, such as an n-gram table, has to predict them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")

TRAINING_SEED: Final = 1_000_000
"""First seed of the corpus that the embedded model is trained on; its parts count upwards from here."""
HELDOUT_SEED: Final = 7
"""Seed of the documents in `heldout.jsonl`; no part of the training corpus has it."""


def _words(text: str) -> tuple[str, ...]:
    """Splits at bars if there are any, else at spaces."""
    return tuple(text.split("|" if "|" in text else None))


_HEADS: Final = _words(
    "Bal Cor Dun Fen Gar Hol Ister Jan Kel Lum Mor Nav Ost Pel Quin Ros Sil Tam Ulv Ver Wil Yan Zeb Ard Bryn Cass "
    "Dag Elm Fio Grim Hest Ivo"
)
_TAILS: Final = _words(
    "a an ara bert da dith el en eth fa gard ia ika in is ko la lin lo mir mund na nor o ora ric ska ta ton us va wen"
)
_TRADES: Final = _words("miller weaver potter smith baker fisher carter mason dyer cooper tanner glazier")
_THINGS: Final = _words(
    "lamp kettle saddle mirror anchor ladder drum violin compass blanket hammer basket clock candle bucket spade "
    "flute anvil lantern wheel chest mantle barrel sickle"
)
_TIMES: Final = _words(
    "At noon|At dawn|After supper|Before sunrise|Two days later|One evening|In spring|On market day|Next morning|"
    "That night|Soon after|A week later|In the rain|Around midnight|Early one day|Without a word"
)
_MOVES: Final = _words("went|ran|rode|walked|came|hurried|crept|returned")
_KINDS_OF_SITE: Final = _words("old new dark quiet narrow ruined crowded empty")
_SITES: Final = _words(
    "bridge harbour market gate windmill orchard well chapel ferry quarry mill inn barn garden road camp"
)
_DEEDS: Final = _words(
    "waited|counted boats|sang until dark|ate bread|spoke to nobody|found a glove|slept|mended a net|lit a fire|"
    "drew a map|read letters|fed the geese|told a joke|paid a debt|caught a trout|chopped wood"
)
_TRADED: Final = _words("gave sold lent promised brought showed")
_MOODS: Final = _words("smiled|frowned|said nothing|was glad|laughed|wept|shrugged|sighed")
_WEATHER: Final = _words(
    "snow fell|a warm wind blew|the river rose|fog hid the hills|it was hot|hail broke windows|stars shone|"
    "thunder rolled"
)
_GOODS: Final = _words(
    "sacks of salt|bales of wool|jars of honey|rolls of linen|casks of ale|bags of flour|bars of iron|crates of tea|"
    "pots of ink|coils of rope|boxes of nails|sheets of glass"
)
_REMARKS: Final = _words("paid|owed|paid late|paid in silver|sent back|half paid|paid at once|under seal")
_TAGS: Final = _words(
    "harvest garden winter summer kitchen cellar attic tower meadow forest valley island chamber window stable "
    "mirror copper silver paper button pepper butter ginger almond walnut cherry rabbit badger falcon turtle spider "
    "beetle"
)
_COLOURS: Final = _words("red blue green white black grey yellow brown")
_COUNTED: Final = _words("beads apples coins shells buttons pebbles nails feathers")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its information content.

    :param text: Ends with a line break; ASCII, so each character is one byte.
    :param bits: -log2 of the probability with which the grammar writes this text.
    """

    text: str
    bits: float


class _Pen:
    """Writes a text and adds up the bits of every choice in it."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._parts: list[str] = []
        self._bits = 0.0

    def write(self, text: str) -> None:
        self._parts.append(text)

    def document(self) -> Document:
        return Document("".join(self._parts), self._bits)

    def number(self, low: int, high: int) -> int:
        """Draws evenly from low to high, both included."""
        count = high - low + 1
        self._bits += math.log2(count)
        # random() is the only method of Random whose sequence Python guarantees to keep between versions
        return low + int(self._rng.random() * count)

    def pick(self, options: Sequence[T]) -> T:
        """Draws one of the options, all equally likely."""
        return options[self.number(0, len(options) - 1)]

    def several(self, options: Sequence[T], count: int) -> list[T]:
        """Draws distinct options, in random order."""
        left = list(options)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]

    def weigh(self, options: Sequence[tuple[int, T]]) -> T:
        """Draws one of (weight, option), in proportion to the weights."""
        total = sum(weight for weight, _ in options)
        mark = self._rng.random() * total
        last = len(options) - 1
        chosen = next((i for i, end in enumerate(accumulate(weight for weight, _ in options)) if mark < end), last)
        weight, option = options[chosen]
        self._bits += math.log2(total / weight)
        return option

    def names(self, count: int) -> list[str]:
        """Makes up names. No two have the same first syllable, which so identifies a name."""
        return [head + self.pick(_TAILS) for head in self.several(_HEADS, count)]


def _story(pen: _Pen) -> None:
    place, *cast = pen.names(4)
    trades = dict(zip(cast, pen.several(_TRADES, 3), strict=True))
    holders = dict(zip(pen.several(_THINGS, 3), cast, strict=True))
    worth = {thing: pen.number(100, 999) for thing in holders}
    first, second, third = (f"{name} the {trades[name]}" for name in cast)
    pen.write(f"A story from {place}, of {first}, {second} and {third}.\n")
    for thing, name in holders.items():
        pen.write(f"{name} had a {thing} worth {worth[thing]} coins.\n")
    for _ in range(pen.number(10, 18)):
        event = pen.weigh([(4, "walk"), (2, "gift"), (2, "question"), (1, "weather")])
        time = pen.pick(_TIMES)
        if event == "weather":
            pen.write(f"{time} {pen.pick(_WEATHER)} in {place}.\n")
        elif event == "walk":
            name = pen.pick(cast)
            way = f"{pen.pick(_MOVES)} to the {pen.pick(_KINDS_OF_SITE)} {pen.pick(_SITES)}"
            pen.write(f"{time} {name} the {trades[name]} {way} and {pen.pick(_DEEDS)}.\n")
        elif event == "gift":
            thing = pen.pick(list(holders))
            giver = holders[thing]
            taker = pen.pick([name for name in cast if name != giver])
            holders[thing] = taker
            deal = f"{giver} {pen.pick(_TRADED)} the {thing} to {taker} the {trades[taker]}"
            pen.write(f"{time} {deal}, and {giver} {pen.pick(_MOODS)}.\n")
        else:
            name, thing = pen.pick(cast), pen.pick(list(holders))
            answer = f"It was {holders[thing]}, for {worth[thing]} coins"
            pen.write(f"{time} {name} asked who had the {thing}. {answer}. {name} {pen.pick(_MOODS)}.\n")
    pen.write("In the end " + ", ".join(f"{name} had the {thing}" for thing, name in holders.items()) + ".\n")


def _ledger(pen: _Pen) -> None:
    place, keeper, *buyers = pen.names(6)
    prices = {goods: pen.number(2, 9) for goods in pen.several(_GOODS, 5)}
    pen.write(f"Ledger of {place} for the year {pen.number(1100, 1899)}, kept by {keeper}.\n")
    for goods, price in prices.items():
        pen.write(f"All {goods} at {price} coins.\n")
    for row in range(1, pen.number(10, 18) + 1):
        day, buyer, goods, count = pen.number(1, 28), pen.pick(buyers), pen.pick(list(prices)), pen.number(2, 9)
        amount = f"{count} {goods} at {prices[goods]} are {count * prices[goods]} coins"
        pen.write(f"{row}. Day {day}: {buyer}, {amount}, {pen.pick(_REMARKS)}.\n")
    pen.write(f"Here ends the ledger of {place}, signed by {keeper}.\n")


def _sums(pen: _Pen) -> None:
    teacher, pupil = pen.names(2)
    pen.write(f"Sums that {teacher} set for {pupil}.\n")
    for _ in range(pen.number(12, 20)):
        things, have, more = f"{pen.pick(_COLOURS)} {pen.pick(_COUNTED)}", pen.number(10, 99), pen.number(2, 49)
        pen.write(f"{have} {things} and {more} more are {have + more}. {have + more} without {more} are {have}.\n")
    pen.write(f"Well done, {pupil}, said {teacher}.\n")


def _brackets(pen: _Pen) -> None:
    pen.write(f"Brackets by {pen.names(1)[0]}. Each one closes what was opened last.\n")
    for _ in range(pen.number(7, 11)):
        opened: list[str] = []
        for left in range(pen.number(4, 7), 0, -1):
            opened.append(pen.pick(_TAGS))
            pen.write(f"<{opened[-1]}> ")
            # the first bracket stays open until the last has been opened, so that a line is one tree
            while left > 1 and len(opened) > 1 and pen.pick((True, False)):
                pen.write(f"</{opened.pop()}> ")
        while opened:
            pen.write(f"</{opened.pop()}> ")
        pen.write("end\n")


def _list(pen: _Pen) -> None:
    names = pen.names(pen.number(6, 10))
    codes = dict(zip(names, pen.several(range(100, 1000), len(names)), strict=True))
    lines = [f"{name} {code}" for name, code in codes.items()]
    pen.write("A list: " + ", ".join(lines) + ".\n")
    for _ in range(pen.number(14, 26)):
        task = pen.weigh([(1, "again"), (1, "backwards"), (7, "number"), (7, "name"), (4, "next")])
        if task == "again":
            pen.write("Once more: " + ", ".join(lines) + ".\n")
        elif task == "backwards":
            pen.write("Backwards: " + ", ".join(reversed(lines)) + ".\n")
        elif task == "next":
            index = pen.number(0, len(names) - 2)
            pen.write(f"Who comes after {names[index]}? {names[index + 1]}.\n")
        elif task == "number":
            name = pen.pick(names)
            pen.write(f"The number of {name}? {codes[name]}.\n")
        else:
            name = pen.pick(names)
            pen.write(f"Who has {codes[name]}? {name}.\n")


_KINDS: Final[Sequence[tuple[int, Callable[[_Pen], None]]]] = (
    (5, _story),
    (3, _ledger),
    (2, _sums),
    (2, _brackets),
    (4, _list),
)


def document(rng: Random) -> Document:
    """Writes one document of about a kilobyte."""
    pen = _Pen(rng)
    pen.weigh(_KINDS)(pen)
    return pen.document()


def corpus(seed: int, count: int) -> Iterator[Document]:
    """Writes documents, the same ones for the same seed on every machine and Python."""
    rng = Random(seed)
    for _ in range(count):
        yield document(rng)
