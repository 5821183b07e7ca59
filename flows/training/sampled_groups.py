"""The groups of an iteration, batch by batch: of its own questions, and of further ones in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from flows.run.live import Runtime
from flows.run.perform import Attempt
from flows.run.progress import RolloutProgress
from schemas.records.question import Question
from schemas.records.rollout import Group
from sdsearch.credit.filtering import num_teaching


class Batch(NamedTuple):
    """Questions that are sampled together; its groups are kept as the piece `name`."""

    name: str
    questions: Sequence[Question]
    replacement: int
    """The round in which the questions were drawn in place of others; 0 for the iteration's own."""


class GroupSampling:
    """The sampling of one attempt at the sample stage; each batch is kept, so that a stopped stage goes on."""

    def __init__(self, live: Runtime, attempt: Attempt, iteration: int, questions: Sequence[Question]) -> None:
        settings = live.settings
        self.groups: list[Group] = []
        """What is sampled so far, in the order of the batches."""
        self._settings = settings
        self._attempt = attempt
        self._questions = questions
        self._progress = RolloutProgress(live.reporter, len(questions), settings.rollout.group_size)
        self.roll_out: Callable[[Sequence[Question]], list[Group]] = partial(
            live.rollout_loop(iteration - 1, self._progress).roll_out,
            run_seed=settings.seed,
            iteration=iteration,
            policy_version=iteration - 1,
            group_size=settings.rollout.group_size,
            temperature=settings.rollout.temperature,
        )
        """Returns a group for each question; errors as of `RolloutLoop.roll_out`."""

    def batches(self, candidates: Sequence[Question]) -> Iterator[Batch]:
        """Yield the batches whose groups are missing: of the own questions, then of candidates in place of others.

        Further questions are drawn until as many groups as there are questions have different rewards (grpo.filter).
        Each round takes as many candidates, in their order, as groups are missing; the rounds and the candidates are
        bounded. Which questions are drawn depends on what was sampled before, which is kept, and on nothing else.
        """
        yield from self._cut("groups", self._questions, 0)
        left = iter(candidates)
        for number in range(1, self._settings.grpo.resample_rounds + 1) if candidates else ():
            teaching = num_teaching(self.groups, self._settings.reward, self._settings.grpo)
            questions = list(islice(left, max(0, len(self._questions) - teaching)))
            if not questions:
                return
            self._progress.grow(len(questions))
            yield from self._cut(f"replacements-{number}", questions, number)

    def keep(self, batch: Batch, sampled: Sequence[Group]) -> None:
        """Keep the groups of a batch."""
        groups = [group.model_copy(update={"replacement": batch.replacement}) for group in sampled]
        self._add(self._attempt.keep_partial(batch.name, Group, groups))

    def _cut(self, name: str, questions: Sequence[Question], replacement: int) -> Iterator[Batch]:
        """Yield the batches that are not kept; those that are count as sampled.

        A batch is never cut anew: log-probabilities may depend, in their last bits, on what shares the batch.
        """
        size = self._settings.rollout.questions_per_batch
        for start in range(0, len(questions), size):
            batch = Batch(f"{name}-{start:05d}", questions[start : start + size], replacement)
            kept = self._attempt.find_partial(batch.name, Group)
            if kept:
                self._add(kept)
            else:
                yield batch

    def _add(self, groups: Sequence[Group]) -> None:
        self.groups += groups
        self._progress.kept(len(self.groups))
