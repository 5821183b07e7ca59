"""Evaluation of the plain policy: no hindsight block, greedy unless asked otherwise (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.evaluation import EvaluationAnswer, EvaluationMode, EvaluationReport
from schemas.records.question import Question
from schemas.records.rollout import Group
from sdsearch.credit.scoring import exact_match, f1_score, golden_hits
from sdsearch.sampling.rollouts import RolloutLoop
from sdsearch.seeds import derive_seed


def fixed_sample(questions: Sequence[Question], size: int, seed: int) -> list[Question]:
    """Return the same `size` questions for the same seed, whatever the order they came in; all when fewer, or 0."""
    ordered = sorted(questions, key=lambda question: derive_seed(seed, "evaluation", question.key))
    return ordered[:size] if size else ordered


def evaluate(
    loop: RolloutLoop,
    questions: Sequence[Question],
    *,
    mode: EvaluationMode,
    temperature: float,
    seed: int,
    iteration: int,
    policy_version: int,
    questions_per_batch: int,
) -> tuple[EvaluationReport, list[EvaluationAnswer]]:
    """Answer each question once and return the means with the answers."""
    answers = answer_questions(
        loop,
        questions,
        mode=mode,
        temperature=temperature,
        seed=seed,
        policy_version=policy_version,
        questions_per_batch=questions_per_batch,
    )
    return summarise(questions[0], answers, mode, iteration, policy_version), answers


def answer_questions(
    loop: RolloutLoop,
    questions: Sequence[Question],
    *,
    mode: EvaluationMode,
    temperature: float,
    seed: int,
    policy_version: int,
    questions_per_batch: int,
) -> list[EvaluationAnswer]:
    """Answer each question once; 'sampled' draws at the rollout temperature with seeds that never change."""
    answers: list[EvaluationAnswer] = []
    for start in range(0, len(questions), questions_per_batch):
        batch = questions[start : start + questions_per_batch]
        groups = roll_out_once(
            loop, batch, mode=mode, temperature=temperature, seed=seed, policy_version=policy_version
        )
        answers.extend(_answer(group) for group in groups)
    return answers


def roll_out_once(
    loop: RolloutLoop,
    questions: Sequence[Question],
    *,
    mode: EvaluationMode,
    temperature: float,
    seed: int,
    policy_version: int,
) -> list[Group]:
    """Roll out each question once, in one batch, as an evaluation does."""
    return loop.roll_out(
        questions,
        run_seed=derive_seed(seed, "evaluation"),
        iteration=0,
        policy_version=policy_version,
        group_size=1,
        temperature=0.0 if mode == "greedy" else temperature,
    )


def summarise(
    question: Question, answers: Sequence[EvaluationAnswer], mode: EvaluationMode, iteration: int, policy_version: int
) -> EvaluationReport:
    """Return the means over the answers; `question` is any of them and names the data set and split."""
    return EvaluationReport(
        iteration=iteration,
        policy_version=policy_version,
        mode=mode,
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
        valid_format=rollout.valid_format,
        num_hits=sum(map(len, golden)),
        num_golden_hits=sum(map(sum, golden)),
        num_completion_tokens=len(rollout.completion_positions),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
