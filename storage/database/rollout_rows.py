"""The rows of the score stage: questions, groups, rollouts and what they consist of, and the iteration's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Final, Literal

import pyarrow as pa

from schemas.records.hindsight import Label, label_outcome
from schemas.records.question import Question
from schemas.records.reports import RetriedQuery
from schemas.records.rollout import Answer, Group, Malformed, Rollout, Search
from schemas.records.score import Score
from storage.database.rows import StageRows, build, build_from_records

LabelMetric = Literal["f1", "em"]


@dataclass(frozen=True)
class _Scored:
    """A rollout with its group, its score and what the score makes of it."""

    group: Group
    rollout: Rollout
    score: Score
    outcome: Label


def score_rows(
    run: str,
    iteration: int,
    groups: Sequence[Group],
    scores: Sequence[Score],
    label_metric: LabelMetric = "f1",
    rho: float = 0.0,
    retried: Sequence[RetriedQuery] = (),
) -> StageRows:
    """Return the rows of the score stage, groups and siblings in the given order.

    A rollout's outcome is CORRECT when its `label_metric` exceeds `rho`; `retried` are the queries whose requests were
    repeated while the groups were sampled. ValueError when a rollout has no score.
    """
    assert groups, "an iteration samples at least one group"
    by_id = {score.rollout_id: score for score in scores}
    unscored = [rollout.id for group in groups for rollout in group.rollouts if rollout.id not in by_id]
    if unscored:
        raise ValueError(f"{len(unscored)} rollouts have no score, the first is {unscored[0]!r}; score all of them")
    scored = [
        [
            _Scored(group, rollout, score, label_outcome(getattr(score, label_metric), rho))
            for rollout in group.rollouts
            for score in [by_id[rollout.id]]
        ]
        for group in groups
    ]
    flat = [item for siblings in scored for item in siblings]
    return {
        "questions": _questions(run, iteration, groups),
        "groups": _groups(run, iteration, groups, scored),
        "rollouts": _rollouts(run, iteration, flat),
        "turns": _turns(run, iteration, flat),
        "searches": _searches(run, iteration, flat, retried),
        "reward_parts": _reward_parts(run, iteration, flat),
        "iteration_metrics": _metrics(run, iteration, scored),
    }


def _questions(run: str, iteration: int, groups: Sequence[Group]) -> pa.Table:
    questions: list[Question] = list({group.question.key: group.question for group in groups}.values())
    columns = {
        "question_key": [question.key for question in questions],
        "question_id": [question.id for question in questions],
    }
    return build_from_records("questions", run, iteration, questions, columns)


def _groups(run: str, iteration: int, groups: Sequence[Group], scored: Sequence[Sequence[_Scored]]) -> pa.Table:
    rewards = [[item.score.reward for item in siblings] for siblings in scored]
    columns: dict[str, Sequence[Any]] = {
        "group_id": [group.id for group in groups],
        "question_key": [group.question.key for group in groups],
        "num_rollouts": [len(group.rollouts) for group in groups],
        "reward_mean": [fmean(values) for values in rewards],
        "reward_std": [_std(values) for values in rewards],
        "zero_advantage": [_zero_advantage(siblings) for siblings in scored],
        "filtered": [siblings[0].score.filtered for siblings in scored],
        "num_distinct_queries": [_num_distinct_queries(group) for group in groups],
    }
    return build_from_records("groups", run, iteration, groups, columns)


def _rollouts(run: str, iteration: int, flat: Sequence[_Scored]) -> pa.Table:
    rollouts = [item.rollout for item in flat]
    columns: dict[str, Sequence[Any]] = {
        "rollout_id": [rollout.id for rollout in rollouts],
        "group_id": [item.group.id for item in flat],
        "question_key": [item.group.question.key for item in flat],
        "rollout_index": [rollout.index for rollout in rollouts],
        "answer": [rollout.answer for rollout in rollouts],
        "queries": [rollout.queries for rollout in rollouts],
        "num_turns": [len(rollout.turns) for rollout in rollouts],
        "num_malformed": [_num_malformed(rollout) for rollout in rollouts],
        "stop_reason": [rollout.turns[-1].generation.stop_reason for rollout in rollouts],
        "num_tokens": [rollout.num_tokens_before(len(rollout.turns)) for rollout in rollouts],
        "num_completion_tokens": [_num_completion_tokens(rollout) for rollout in rollouts],
        "outcome": [item.outcome for item in flat],
        "num_query_tokens": [len(rollout.query_positions) for rollout in rollouts],
    }
    return build_from_records("rollouts", run, iteration, [item.score for item in flat], columns)


def _turns(run: str, iteration: int, flat: Sequence[_Scored]) -> pa.Table:
    rollouts = [item.rollout for item in flat]
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    starts = [start for rollout in rollouts for start in map(rollout.num_tokens_before, range(len(rollout.turns)))]
    observations = [turn.observation for turn in turns]
    columns: dict[str, Sequence[Any]] = {
        "rollout_id": [rollout.id for rollout in rollouts for _ in rollout.turns],
        "turn": [index for rollout in rollouts for index in range(len(rollout.turns))],
        "action": [turn.action.kind for turn in turns],
        "query": [turn.action.query if isinstance(turn.action, Search) else None for turn in turns],
        "answer": [turn.action.answer if isinstance(turn.action, Answer) else None for turn in turns],
        "malformed_reason": [turn.action.reason if isinstance(turn.action, Malformed) else None for turn in turns],
        "token_start": starts,
        "observation_kind": [observation.kind if observation else None for observation in observations],
        "observation_text": [observation.text if observation else None for observation in observations],
        "observation_token_ids": [observation.token_ids if observation else None for observation in observations],
        "num_tokens_cut": [observation.num_tokens_cut if observation else None for observation in observations],
        **{column: _of_turns(flat, field) for column, field in _TURN_COLUMNS.items()},
    }
    return build_from_records("turns", run, iteration, [turn.generation for turn in turns], columns)


_TURN_COLUMNS: Final = {
    "answer_probability": "answer_probabilities",
    "turn_reward": "turn_rewards",
    "turn_advantage": "turn_advantages",
}
"""The columns of `turns` that a score holds turn by turn, and its fields."""


def _of_turns(flat: Sequence[_Scored], field: str) -> list[float | None]:
    """Return a field of the scores, one value a turn; None for each turn where it is empty."""
    return [v for item in flat for v in getattr(item.score, field) or [None] * len(item.rollout.turns)]


def _searches(run: str, iteration: int, flat: Sequence[_Scored], retried: Sequence[RetriedQuery]) -> pa.Table:
    num_retries = {each.query: each.num_retries for each in retried}
    searches = [
        (item, index, query, turn.hits)
        for item in flat
        for index, turn in enumerate(item.rollout.turns)
        if (query := turn.searched_query) is not None
    ]
    golden = [flags for item in flat for flags in item.score.golden]
    columns: dict[str, Sequence[Any]] = {
        "rollout_id": [item.rollout.id for item, _, _, _ in searches],
        "turn": [index for _, index, _, _ in searches],
        "group_id": [item.group.id for item, _, _, _ in searches],
        "query": [query for _, _, query, _ in searches],
        "num_hits": [len(hits) for _, _, _, hits in searches],
        "hit": [any(flags) for flags in golden],
        "passage_ids": [[hit.passage.id for hit in hits] for _, _, _, hits in searches],
        "titles": [[hit.passage.title for hit in hits] for _, _, _, hits in searches],
        "scores": [[hit.score for hit in hits] for _, _, _, hits in searches],
        "golden": golden,
        "num_retries": [num_retries.get(query, 0) for _, _, query, _ in searches],
    }
    return build("searches", run, iteration, columns)


def _reward_parts(run: str, iteration: int, flat: Sequence[_Scored]) -> pa.Table:
    pairs = [(item.rollout.id, part) for item in flat for part in item.score.parts]
    parts = [part for _, part in pairs]
    return build_from_records("reward_parts", run, iteration, parts, {"rollout_id": [owner for owner, _ in pairs]})


def _metrics(run: str, iteration: int, scored: Sequence[Sequence[_Scored]]) -> pa.Table:
    flat = [item for siblings in scored for item in siblings]
    rollouts, scores = [item.rollout for item in flat], [item.score for item in flat]
    correct = [[item.outcome == "CORRECT" for item in siblings] for siblings in scored]
    num_turns = sum(len(rollout.turns) for rollout in rollouts)
    num_hits = sum(score.num_hits for score in scores)
    num_completion_tokens = [_num_completion_tokens(rollout) for rollout in rollouts]
    row: dict[str, Any] = {
        "policy_version": scored[0][0].group.policy_version,
        "num_groups": len(scored),
        "num_rollouts": len(flat),
        "reward_mean": fmean(score.reward for score in scores),
        "reward_std": _std([score.reward for score in scores]),
        "em": fmean(score.em for score in scores),
        "f1": fmean(score.f1 for score in scores),
        "valid_share": fmean(score.valid_format for score in scores),
        "malformed_share": sum(map(_num_malformed, rollouts)) / num_turns,
        "zero_advantage_share": fmean(_zero_advantage(siblings) for siblings in scored),
        "all_correct_share": fmean(all(labels) for labels in correct),
        "all_incorrect_share": fmean(not any(labels) for labels in correct),
        "searches_per_rollout": fmean(len(rollout.queries) for rollout in rollouts),
        "distinct_queries_per_group": fmean(_num_distinct_queries(siblings[0].group) for siblings in scored),
        "search_quality": sum(score.num_golden_hits for score in scores) / max(num_hits, 1),
        "completion_tokens_mean": fmean(num_completion_tokens),
        "num_completion_tokens": sum(num_completion_tokens),
        "num_retries": 0,
        "num_retries_correct": 0,
        "num_retry_tokens": 0,
        "num_filtered_groups": sum(siblings[0].score.filtered for siblings in scored),
        "num_replacement_groups": sum(siblings[0].group.replacement > 0 for siblings in scored),
    }
    return build("iteration_metrics", run, iteration, {name: [value] for name, value in row.items()})


def _num_completion_tokens(rollout: Rollout) -> int:
    return sum(len(turn.generation.token_ids) for turn in rollout.turns)


def _num_malformed(rollout: Rollout) -> int:
    return sum(isinstance(turn.action, Malformed) for turn in rollout.turns)


def _num_distinct_queries(group: Group) -> int:
    return len({query for rollout in group.rollouts for query in rollout.queries})


def _zero_advantage(siblings: Sequence[_Scored]) -> bool:
    return not any(item.score.has_advantage for item in siblings)


def _std(values: Sequence[float]) -> float:
    """The unbiased standard deviation, 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0
