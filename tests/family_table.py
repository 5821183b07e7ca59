"""Compare every causal family of transformers with the plain model; renew the table of docs/explanation/models.md.

`python -m tests.family_table [FAMILY …]` prints a row a family; without names the page is written anew (minutes).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import logging

from benchmarks.results import put_results
from schemas.errors import UserError, reason_of
from sdsearch.model.attention import TREE_ATTENTIONS
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.training.selfcheck import check_model, compare, ordinary_tokens
from tests.support.builders import make_tokenizer
from tests.support.families import FAMILIES, VARIANTS, small_model

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "models.md"
_HEAD = ("| family | class | sampler | update | verdict |", "|---|---|---|---|---|")
_LONGEST_REASON = 110
_OWN_ATTENTION = "attends in a way of its own"


class Row(NamedTuple):
    """What became of a family; differences are the largest of a log-probability, nats."""

    family: str
    model_class: str
    sampler: float | None
    update: float | None
    verdict: str  # trained, "refused: why" or "not made: why"

    def __str__(self) -> str:
        numbers = ("" if value is None else f"{value:.0e}" for value in (self.sampler, self.update))
        return f"| {self.family} | {self.model_class} | {' | '.join(numbers)} | {self.verdict} |"


def rows(families: Sequence[str]) -> Iterator[Row]:
    """Yield a row a family."""
    for family in families:
        yield _row(family)


def _row(family: str) -> Row:
    try:
        model = small_model(family)
    except Exception as error:  # Whatever a class raises over sizes that were not made for it.
        if TREE_ATTENTIONS["split"] in str(error):
            return Row(family, "", None, None, f"refused: {_OWN_ATTENTION}")
        return Row(family, "", None, None, f"not made: {_short(reason_of(error))}")
    name = type(model).__name__
    tokens = ordinary_tokens(make_tokenizer(), model)
    found: dict[str, float] = {}
    try:
        sampler = TransformersSampler(model, make_tokenizer())
        found = {difference.path: difference.largest for difference in compare(model, sampler, tokens, 500)}
        check_model(model, sampler, tokens, longest=500)
        verdict = "trained"
    except UserError as error:
        why = "differs" if found else _short(str(error).removeprefix(f"{name} ").partition("; ")[0])
        verdict = f"refused: {why}"
    return Row(family, name, found.get("sampler"), found.get("update"), verdict)


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def main(families: Sequence[str]) -> None:
    """Print the rows; write the page when all families were asked for."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    made = []
    for row in rows(families or (*FAMILIES, *VARIANTS)):
        print(row, flush=True)
        made.append(row)
    if families:
        return
    trained = sum(row.verdict == "trained" for row in made)
    refused = sum(row.verdict.startswith("refused") for row in made)
    told = (
        f"transformers {version('transformers')}, torch {version('torch')}: {trained} are trained, {refused} refused, "
        f"{len(made) - trained - refused} were not made."
    )
    put_results(PAGE, "families", [told, "", *_HEAD, *map(str, sorted(made))])


if __name__ == "__main__":
    main(sys.argv[1:])
