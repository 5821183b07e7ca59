"""Evaluation of the plain policy: no hindsight block, greedy unless asked otherwise (paper, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.records.evaluation import EvaluationAnswer, EvaluationMode, EvaluationReport
from schemas.records.question import Question
from schemas.records.rollout import Group
from sdsearch.credit.scoring import cover_exact_match, exact_match, f1_score, golden_hits
from sdsearch.sampling.rollouts import BlockFor, RolloutLoop, no_block
from sdsearch.seeds import derive_seed


def fixed_sample(questions: Sequence[Question], size: int, seed: int) -> list[Question]:
    """Return the same `size` questions for the same seed, whatever the order they came in; all when fewer, or 0."""
    ordered = sorted(questions, key=lambda question: derive_seed(seed, "evaluation", question.key))
    return ordered[:size] if size else ordered


@dataclass(frozen=True)
class Asking:
    """How questions are put to a policy: which weights answer, how they decode, what the draws derive from."""

    mode: EvaluationMode
    temperature: float  # of mode 'sampled'; greedy decoding has none
    seed: int
    policy_version: int


def evaluate(
    loop: RolloutLoop, questions: Sequence[Question], asking: Asking, *, iteration: int, questions_per_batch: int
) -> tuple[EvaluationReport, list[EvaluationAnswer]]:
    """Answer each question once and return the means with the answers."""
    parts = [answer_questions(loop, batch, asking) for _, batch in batches(questions, questions_per_batch)]
    answers = [answer for part in parts for answer in part]
    return summarise(questions[0], answers, asking, iteration), answers


def batches(questions: Sequence[Question], size: int) -> Iterator[tuple[int, Sequence[Question]]]:
    """Yield the place of each batch's first question, and the batch; the last one may be smaller."""
    for start in range(0, len(questions), size):
        yield start, questions[start : start + size]


def answer_questions(loop: RolloutLoop, questions: Sequence[Question], asking: Asking) -> list[EvaluationAnswer]:
    """Answer each question once, in one batch; 'sampled' draws at the temperature with seeds that never change."""
    return [_answer(group) for group in roll_out_once(loop, questions, asking)]


def roll_out_once(
    loop: RolloutLoop, questions: Sequence[Question], asking: Asking, block_for: BlockFor = no_block
) -> list[Group]:
    """Roll out each question once, in one batch, as an evaluation does; which shows no block."""
    return loop.roll_out(
        questions,
        run_seed=derive_seed(asking.seed, "evaluation"),
        iteration=0,
        policy_version=asking.policy_version,
        group_size=1,
        temperature=0.0 if asking.mode == "greedy" else asking.temperature,
        block_for=block_for,
    )


def summarise(
    question: Question, answers: Sequence[EvaluationAnswer], asking: Asking, iteration: int, *, further: bool = False
) -> EvaluationReport:
    """Return the means over the answers; `question` is any of them and names the data set and split."""
    return EvaluationReport(
        iteration=iteration,
        policy_version=asking.policy_version,
        mode=asking.mode,
        dataset=question.dataset,
        split=question.split,
        num_questions=len(answers),
        em=_mean([answer.em for answer in answers]),
        f1=_mean([answer.f1 for answer in answers]),
        search_quality=sum(answer.num_golden_hits for answer in answers)
        / max(1, sum(answer.num_hits for answer in answers)),
        searches_per_rollout=_mean([len(answer.queries) for answer in answers]),
        valid_share=_mean([answer.valid_format for answer in answers]),
        completion_tokens_mean=_mean([answer.num_completion_tokens for answer in answers]),
        cover_em=_mean_of_all([answer.cover_em for answer in answers]),
        further=further,
    )


def _answer(group: Group) -> EvaluationAnswer:
    question, rollout = group.question, group.rollouts[0]
    golden = golden_hits(rollout, question.golden_answers)
    return EvaluationAnswer(
        question_key=question.key,
        question=question.question,
        golden_answers=question.golden_answers,
        category=question.category,
        answer=rollout.answer,
        queries=rollout.queries,
        em=exact_match(rollout.answer, question.golden_answers),
        f1=f1_score(rollout.answer, question.golden_answers),
        cover_em=cover_exact_match(rollout.answer, question.golden_answers),
        valid_format=rollout.valid_format,
        num_hits=sum(map(len, golden)),
        num_golden_hits=sum(map(sum, golden)),
        num_completion_tokens=len(rollout.completion_positions),
        found=tuple(
            tuple(hit.passage.id for hit in turn.hits) for turn in rollout.turns if turn.searched_query is not None
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where some are missing, as in batches that an earlier version answered."""
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None
