"""Figures that say what a policy can do on the embedded world, and whether it uses the hindsight block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from torch import nn

from schemas.records.evaluation import EvaluationMode
from schemas.records.hindsight import HindsightAttempt, HindsightBlock, Label
from schemas.records.passage import Passage
from schemas.records.question import Question
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.settings.method import BLOCK_TOKENS
from schemas.settings.root import DistillationSettings, GrpoSettings, HindsightSettings, RewardSettings
from sdsearch.credit.block_text import encode_block
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import score_groups
from sdsearch.credit.teacher import TeacherSettings, compute_targets
from sdsearch.evaluation.answering import Asking, evaluate
from sdsearch.retrieval.ports import Retriever
from sdsearch.sampling.rollouts import RolloutLoop
from sdsearch.world.markup import MarkedWorld, NameSource, Renaming

_GROUP_SIZE = 5
_QUESTIONS_PER_BATCH = 64
_OPPOSITE: dict[Label, Label] = {"CORRECT": "INCORRECT", "INCORRECT": "CORRECT"}


class Estimate(NamedTuple):
    """A mean with its standard error over questions; `num` questions entered."""

    mean: float
    standard_error: float
    num: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        if not values:
            return Estimate(math.nan, math.nan, 0)
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        return Estimate(mean, math.sqrt(variance / len(values)), len(values))


class PlainFigures(NamedTuple):
    """The plain policy on one set of questions, each answered once."""

    em: float
    f1: float
    valid_share: float
    searches_per_rollout: float
    search_quality: float


class BlockFigures(NamedTuple):
    """The use of the block, on questions whose sibling rollouts had mixed outcomes.

    `em` holds the exact match of fresh samples after each kind of block; `full_minus_shuffled` is paired by
    question. The log-ratios are means over query tokens of log p_teacher - log p_student (nats), a rollout at a
    time and then over questions, for CORRECT and INCORRECT rollouts. `num_groups` counts the mixed groups.
    """

    em: dict[str, Estimate]
    full_minus_shuffled: Estimate
    log_ratio_correct: Estimate
    log_ratio_incorrect: Estimate
    num_groups: int


def measure_plain(loop: RolloutLoop, questions: Sequence[Question], mode: EvaluationMode, seed: int) -> PlainFigures:
    """Evaluate the plain policy, sampled at temperature 1 or greedily."""
    report, _ = evaluate(
        loop,
        questions,
        Asking(mode, temperature=1.0, seed=seed, policy_version=0),
        iteration=0,
        questions_per_batch=_QUESTIONS_PER_BATCH,
    )
    return PlainFigures(report.em, report.f1, report.valid_share, report.searches_per_rollout, report.search_quality)


def rename_world(
    world: MarkedWorld, questions: Sequence[Question], names: NameSource, seed: int
) -> tuple[list[Passage], list[Question]]:
    """Return the corpus and the questions with every marked name replaced by an invented one, the same everywhere."""
    renaming = Renaming(Random(seed), names, invented=True)
    passages = [
        Passage(id=key, title=renaming.apply(marked.title), text=renaming.apply(marked.text))
        for key, marked in world.passages.items()
    ]
    plans = {plan.id: plan for plan in world.plans}
    renamed = [
        question.model_copy(
            update={
                "question": renaming.apply(plans[question.id].question),
                "golden_answers": tuple(map(renaming.apply, plans[question.id].golden_answers)),
            }
        )
        for question in questions
    ]
    return passages, renamed


def with_retriever(loop: RolloutLoop, retriever: Retriever) -> RolloutLoop:
    """Return the same loop over another corpus."""
    return RolloutLoop(loop.tokenizer, loop.sampler, retriever, loop.limits, loop.frame)


def measure_blocks(loop: RolloutLoop, model: nn.Module, questions: Sequence[Question], seed: int) -> BlockFigures:
    """Sample groups, keep those with mixed outcomes, and sample again after each kind of block.

    `model` is the policy behind the loop's sampler: as the teacher it also reads the rollouts.
    """
    groups = _roll_out(loop, questions, seed, 0)
    scores = _by_group(groups, score_groups(groups, RewardSettings(), GrpoSettings()))
    mixed = [group for group in groups if 0 < sum(score.f1 > 0 for score in scores[group.id]) < len(group.rollouts)]
    kinds: dict[str, Callable[[Group], list[list[int]]]] = {
        "none": lambda group: [[]] * len(group.rollouts),
        "full": lambda group: _blocks(loop, group, scores[group.id], HindsightSettings(), seed),
        "shuffled": lambda group: _blocks(loop, group, scores[group.id], HindsightSettings(labels="shuffled"), seed),
        "inverted": lambda group: _inverted(loop, group, scores[group.id], seed),
        "leave_one_out": lambda group: _blocks(
            loop, group, scores[group.id], HindsightSettings(members="leave_one_out"), seed
        ),
    }
    em = {name: _em_after(loop, mixed, make, seed) for name, make in kinds.items()}
    correct, incorrect = _log_ratios(loop, model, mixed, scores, seed)
    return BlockFigures(
        em={name: Estimate.of(values) for name, values in em.items()},
        full_minus_shuffled=Estimate.of([a - b for a, b in zip(em["full"], em["shuffled"], strict=True)]),
        log_ratio_correct=Estimate.of(correct),
        log_ratio_incorrect=Estimate.of(incorrect),
        num_groups=len(mixed),
    )


def _roll_out(loop: RolloutLoop, questions: Sequence[Question], seed: int, iteration: int) -> list[Group]:
    groups: list[Group] = []
    for start in range(0, len(questions), _QUESTIONS_PER_BATCH):
        batch = questions[start : start + _QUESTIONS_PER_BATCH]
        groups += loop.roll_out(
            batch, run_seed=seed, iteration=iteration, policy_version=0, group_size=_GROUP_SIZE, temperature=1.0
        )
    return groups


def _by_group(groups: Sequence[Group], scores: Sequence[Score]) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {group.id: [] for group in groups}
    for score in scores:
        found[score.group_id].append(score)
    return found


def _build(
    loop: RolloutLoop, group: Group, scores: Sequence[Score], settings: HindsightSettings, seed: int
) -> list[HindsightBlock]:
    return build_blocks(
        group,
        scores,
        settings=settings,
        seed=seed,
        tokenizer=loop.tokenizer,
        max_context_tokens=loop.limits.max_context_tokens,
    )


def _blocks(
    loop: RolloutLoop, group: Group, scores: Sequence[Score], settings: HindsightSettings, seed: int
) -> list[list[int]]:
    """Return each sibling's block tokens; one block for all, or one each."""
    blocks = _build(loop, group, scores, settings, seed)
    each = blocks * len(group.rollouts) if len(blocks) == 1 else blocks
    return [list(block.token_ids) for block in each]


def _inverted(loop: RolloutLoop, group: Group, scores: Sequence[Score], seed: int) -> list[list[int]]:
    block = _build(loop, group, scores, HindsightSettings(), seed)[0]
    attempts = [
        HindsightAttempt(
            rollout_index=attempt.rollout_index,
            label=None if attempt.label is None else _OPPOSITE[attempt.label],
            contents=attempt.contents,
        )
        for attempt in block.attempts
    ]
    inverted = encode_block(loop.tokenizer, attempts, BLOCK_TOKENS)
    return [list(inverted.token_ids)] * len(group.rollouts)


def _em_after(
    loop: RolloutLoop, groups: Sequence[Group], make: Callable[[Group], list[list[int]]], seed: int
) -> list[float]:
    """Return each question's mean exact match over fresh samples; the seeds do not depend on the block."""
    blocks = {group.question.key: make(group) for group in groups}
    means: list[float] = []
    for start in range(0, len(groups), _QUESTIONS_PER_BATCH):
        sampled = loop.roll_out(
            [group.question for group in groups[start : start + _QUESTIONS_PER_BATCH]],
            run_seed=seed,
            iteration=1,
            policy_version=0,
            group_size=_GROUP_SIZE,
            temperature=1.0,
            block_for=lambda question, index: blocks[question.key][index],
        )
        scores = _by_group(sampled, score_groups(sampled, RewardSettings(), GrpoSettings()))
        means += [sum(score.em for score in scores[group.id]) / len(group.rollouts) for group in sampled]
    return means


def _log_ratios(
    loop: RolloutLoop, model: nn.Module, groups: Sequence[Group], scores: dict[str, list[Score]], seed: int
) -> tuple[list[float], list[float]]:
    """Return for each group the mean log-ratio of its CORRECT and of its INCORRECT rollouts' query tokens."""
    settings = HindsightSettings()
    _, _, credits = compute_targets(
        model,
        loop.tokenizer,
        groups,
        [_build(loop, group, scores[group.id], settings, seed)[0] for group in groups],
        TeacherSettings(1.0, 16384, 2048, settings, DistillationSettings()),
    )
    ratios: dict[str, list[float]] = {}
    for credit in credits:
        ratios.setdefault(credit.rollout_id, []).append(credit.teacher_logprob - credit.student_logprob)
    sides: tuple[list[float], list[float]] = ([], [])
    for group in groups:
        for side, wanted in zip(sides, (True, False), strict=True):
            rollouts = [s.rollout_id for s in scores[group.id] if (s.f1 > 0) is wanted and s.rollout_id in ratios]
            means = [sum(ratios[rollout]) / len(ratios[rollout]) for rollout in rollouts]
            if means:
                side.append(sum(means) / len(means))
    return sides
