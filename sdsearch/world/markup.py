"""The embedded world with its entity names marked, so that demonstrations can rename them.

In a marked text `{…}` holds a name and `{#…}` a number. Renaming keeps the policy from remembering facts: what
it answers it must have read.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from random import Random
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

_SLOT = re.compile(r"\{(#?)([^{}]*)\}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MARKOV_ORDER = 3


class MarkedPassage(NamedTuple):
    """A passage whose title and text have their names marked."""

    title: str
    text: str


class Hop(NamedTuple):
    """One fact that a question needs, in marked text; `bridge` is how the question describes the object."""

    subject: str
    relation: str
    object: str
    gold: frozenset[str]
    bridge: str | None


class QuestionPlan(NamedTuple):
    """A question in marked text with the facts that lead to its answer, in order."""

    id: str
    question: str
    golden_answers: tuple[str, ...]
    category: str
    split: str
    hops: tuple[Hop, ...]


class MarkedWorld(NamedTuple):
    """All marked passages by id, and the questions' plans."""

    passages: dict[str, MarkedPassage]
    plans: tuple[QuestionPlan, ...]


def unmark(text: str) -> str:
    """Return the text as readers see it."""
    return _SLOT.sub(r"\2", text)


def slots(text: str) -> list[str]:
    """Return the marked names and numbers of a text, with their marks, in order."""
    return [match.group(0) for match in _SLOT.finditer(text)]


def load_marked_world() -> MarkedWorld:
    """Return the marked texts that are shipped with the package."""
    passages = {
        str(row["id"]): MarkedPassage(row["title"], row["text"]) for row in _read_rows("passages_markup.json.gz")
    }
    return MarkedWorld(passages, tuple(_read_plan(row) for row in _read_rows("questions_markup.json.gz")))


def _read_rows(name: str) -> list[dict[str, Any]]:
    packed = resources.files("sdsearch.world").joinpath("data", name).read_bytes()
    rows: list[dict[str, Any]] = json.loads(gzip.decompress(packed))
    return rows


def _read_plan(row: dict[str, Any]) -> QuestionPlan:
    hops = tuple(Hop(hop["s"], hop["r"], hop["o"], frozenset(map(str, hop["gold"])), hop["b"]) for hop in row["plan"])
    return QuestionPlan(row["id"], row["question"], tuple(row["golden_answers"]), row["type"], row["split"], hops)


class NameSource:
    """Draws new names: runs of random vocabulary tokens, real names, and invented ones that sound real.

    Every vocabulary token must occur in names that are copied: a policy trained on invented names alone cannot
    copy real ones, whose tokens it then hardly ever sees.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, world: MarkedWorld) -> None:
        countries = {plan.hops[-1].subject for plan in world.plans if plan.category == "1hop-country"}
        found = {slot for passage in world.passages.values() for slot in slots(passage.title + passage.text)}
        self._countries = sorted(map(unmark, countries))
        self._real = sorted(unmark(slot) for slot in found if not slot.startswith(("{#", "{.")))
        self._partial_results = _word_pieces(tokenizer)
        self._successors = _markov_successors(self._real)

    def draw(self, random: Random) -> str:
        """Return one name."""
        kind = random.random()
        if kind < 0.38:
            return self._draw_pieces(random)
        if kind < 0.48:
            return random.choice(self._countries)
        return random.choice(self._real) if kind < 0.65 else self.draw_invented(random)

    def _draw_pieces(self, random: Random) -> str:
        pieces = random.choices(self._partial_results, k=random.choice((1, 2, 2, 3, 3, 4)))
        return "".join(pieces).strip()

    def draw_invented(self, random: Random) -> str:
        """Return a name of one or two words that sounds like the corpus's."""
        words = [self._draw_word(random) for _ in range(random.choice((1, 1, 2)))]
        return " ".join(words)

    def _draw_word(self, random: Random) -> str:
        word = "^" * _MARKOV_ORDER
        while len(word) < 14 + _MARKOV_ORDER:
            letter = random.choice(self._successors[word[-_MARKOV_ORDER:]])
            if letter == "$":
                break
            word += letter
        return word.strip("^").capitalize() or "Ora"


def _word_pieces(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids)
    return [text for text in texts if text.strip() and all(c.isalpha() or c == " " for c in text)]


def _markov_successors(names: Sequence[str]) -> dict[str, list[str]]:
    successors: dict[str, list[str]] = defaultdict(list)
    for word in (word for name in names for word in name.split() if word.isalpha() and len(word) > 2):
        padded = "^" * _MARKOV_ORDER + word.lower() + "$"
        for end in range(_MARKOV_ORDER, len(padded)):
            successors[padded[end - _MARKOV_ORDER : end]].append(padded[end])
    return dict(successors)


class Renaming:
    """One consistent renaming; without a source of names it leaves every name as it is.

    `invented` draws invented names alone and none twice, for renaming a whole corpus.
    """

    def __init__(self, random: Random, names: NameSource | None, invented: bool = False) -> None:
        self._random, self._names, self._invented = random, names, invented
        self._new_names: dict[str, str] = {}
        self._taken: set[str] = set()

    def apply(self, text: str) -> str:
        """Return the text unmarked, its names replaced."""
        return unmark(text) if self._names is None else _SLOT.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        old = match.group(2)
        if old not in self._new_names:
            self._new_names[old] = self._draw(self._names, match.group(1) == "#", old)
        return self._new_names[old]

    def _draw(self, names: NameSource | None, is_number: bool, old: str) -> str:
        assert names is not None, "without names nothing is replaced"
        if is_number:
            return re.sub(r"\d", lambda _: str(self._random.randrange(10)), old)
        if old.startswith("."):
            return "." + "".join(self._random.choices(_LETTERS, k=2))
        if not self._invented:
            return names.draw(self._random)
        new = names.draw_invented(self._random)
        while new in self._taken:
            new += " " + names.draw_invented(self._random)
        self._taken.add(new)
        return new
