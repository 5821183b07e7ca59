"""The groups of an iteration, sampled batch by batch: of its own questions, and of further ones in their place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from flows.run.live import Runtime
from flows.run.perform import Attempt
from flows.run.progress import RolloutProgress
from schemas.records.question import Question
from schemas.records.rollout import Group
from sdsearch.credit.filtering import num_teaching
from sdsearch.sampling.rollouts import RolloutLoop


class GroupSampling:
    """Samples the groups of one attempt at the sample stage; each batch is kept, so that a stopped stage goes on."""

    def __init__(self, live: Runtime, attempt: Attempt, iteration: int, num_questions: int) -> None:
        self._settings = live.settings
        self._attempt = attempt
        self._iteration = iteration
        self._progress = RolloutProgress(live.reporter, num_questions, live.settings.rollout.group_size)
        self._loop: RolloutLoop = live.rollout_loop(iteration - 1, self._progress)
        self._num_kept = 0

    def sample(self, questions: Sequence[Question], name: str = "groups", replacement: int = 0) -> list[Group]:
        """Return a group for each question; errors as of `RolloutLoop.roll_out`.

        name: of the pieces that are kept. replacement: the round in which the questions were drawn in place of others.
        """
        groups: list[Group] = []
        size = self._settings.rollout.questions_per_batch
        # A batch is never cut anew: log-probabilities may depend, in their last bits, on what shares the batch.
        for start in range(0, len(questions), size):
            piece = f"{name}-{start:05d}"
            kept = self._attempt.find_partial(piece, Group) or self._attempt.keep_partial(
                piece, Group, self._roll_out(questions[start : start + size], replacement)
            )
            groups += kept
            self._num_kept += len(kept)
            self._progress.kept(self._num_kept)
        return groups

    def replace(self, groups: Sequence[Group], candidates: Sequence[Question]) -> list[Group]:
        """Return the groups of further questions, until as many as `groups` have different rewards (grpo.filter).

        Each round takes as many candidates, in their order, as groups are missing; the rounds and the candidates are
        bounded. Which questions are drawn depends on what was sampled before, which is kept, and on nothing else.
        """
        settings, drawn, left = self._settings, list[Group](), iter(candidates)
        for number in range(1, settings.grpo.resample_rounds + 1):
            teaching = num_teaching([*groups, *drawn], settings.reward, settings.grpo)
            questions = list(islice(left, len(groups) - teaching))
            if not questions:
                break
            self._progress.grow(len(questions))
            drawn += self.sample(questions, f"replacements-{number}", number)
        return drawn

    def _roll_out(self, questions: Sequence[Question], replacement: int) -> list[Group]:
        rollout = self._settings.rollout
        groups = self._loop.roll_out(
            questions,
            run_seed=self._settings.seed,
            iteration=self._iteration,
            policy_version=self._iteration - 1,
            group_size=rollout.group_size,
            temperature=rollout.temperature,
        )
        return [group.model_copy(update={"replacement": replacement}) for group in groups]
