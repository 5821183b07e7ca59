"""Which questions an iteration samples: an epoch's order by seed, no repeats within it, a position to resume at."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from itertools import islice

from schemas.errors import UserError
from schemas.records.question import Question
from sdsearch.seeds import derive_seed


class Curriculum:
    """Gives each iteration its questions; they depend on the seed and the iteration alone.

    An epoch is put in order once, when its first question is asked for: half a second for 170,000 questions.
    """

    def __init__(self, questions: Sequence[Question], per_iteration: int, seed: int) -> None:
        """Raise UserError when an iteration wants more questions than there are."""
        if per_iteration > len(questions):
            raise UserError(
                f"data.questions_per_iteration is {per_iteration}, but the split has only {len(questions)} questions"
            )
        self._questions = questions
        self._per_iteration = per_iteration
        self._seed = seed
        self._orders: dict[int, list[Question]] = {}

    def questions_of(self, iteration: int) -> list[Question]:
        """Return the questions of an iteration (from 1), none of them twice."""
        epoch, offset = divmod((iteration - 1) * self._per_iteration, len(self._questions))
        chosen = self._order(epoch)[offset : offset + self._per_iteration]
        missing = self._per_iteration - len(chosen)
        return [*chosen, *self._order(epoch + 1)[:missing]] if missing else chosen

    def replacements_of(self, iteration: int, number: int) -> list[Question]:
        """Return up to `number` further questions for an iteration, none of them its own, in the order to draw them.

        They depend on the seed and the iteration alone, and no epoch's order knows of them.
        """
        own = {question.key for question in self.questions_of(iteration)}
        others = (question for question in self._questions if question.key not in own)
        return nsmallest(number, others, key=lambda each: derive_seed(self._seed, "replacement", iteration, each.key))

    def _order(self, epoch: int) -> list[Question]:
        first = max((known for known in self._orders if known <= epoch), default=-1) + 1
        for number in range(first, epoch + 1):
            before = self._orders.get(number - 1, [])
            self._orders = {number - 1: before, number: self._order_after(before, number)}
        return self._orders[epoch]

    def _order_after(self, before: Sequence[Question], epoch: int) -> list[Question]:
        """Return an epoch's order; what shares an iteration with the end of the epoch before comes later."""
        order = sorted(self._questions, key=lambda question: derive_seed(self._seed, "epoch", epoch, question.key))
        num_shared = epoch * len(order) % self._per_iteration
        if not num_shared:
            return order
        shared = {question.key for question in before[-num_shared:]}
        fresh = (question for question in order if question.key not in shared)
        head = list(islice(fresh, self._per_iteration - num_shared))
        taken = {question.key for question in head}
        return [*head, *(question for question in order if question.key not in taken)]
