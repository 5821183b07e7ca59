"""Which questions an iteration samples: an epoch's order by seed, no repeats within it, a position to resume at."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import UserError
from schemas.question import Question
from sdsearch.seeds import derive_seed


def questions_of(iteration: int, questions: Sequence[Question], per_iteration: int, seed: int) -> list[Question]:
    """Return the questions of an iteration (from 1); they depend on the seed and the position alone.

    ValueError when an iteration wants more questions than there are.
    """
    if per_iteration > len(questions):
        raise UserError(
            f"data.questions_per_iteration is {per_iteration}, but the split has only {len(questions)} questions"
        )
    start = (iteration - 1) * per_iteration
    chosen: list[Question] = []
    epoch, offset = divmod(start, len(questions))
    while len(chosen) < per_iteration:
        order = sorted(questions, key=lambda question: derive_seed(seed, "epoch", epoch, question.key))
        seen = {question.key for question in chosen}
        fresh = [question for question in order[offset:] if question.key not in seen]
        chosen.extend(fresh[: per_iteration - len(chosen)])
        epoch, offset = epoch + 1, 0
    return chosen
