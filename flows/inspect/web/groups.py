"""The pages of an iteration's groups, and of one question over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flows.inspect.web.dag import graph_of
from flows.inspect.web.source import NotThereError, Row, Rows, Source

PAGE_SIZE: Final = 50
_ROLLOUTS: Final = 500  # The newest ones of a question.
FILTERS: Final = {
    "all": ("all groups", "true"),
    "mixed": ("mixed", "num_correct > 0 AND num_correct < num_rollouts"),
    "all_wrong": ("all INCORRECT", "num_correct = 0"),
    "all_right": ("all CORRECT", "num_correct = num_rollouts"),
    "no_search": ("a rollout without a search", "num_without_search > 0"),
    "truncated": ("a turn cut at its length", "num_truncated > 0"),
    "malformed": ("a malformed turn", "num_malformed > 0"),
    "retried": ("a search whose request was repeated", "num_retried > 0"),
    "no_answer": ("a rollout without an answer", "num_without_answer > 0"),
}
"""Filters of the groups table: the words for each, and its condition in SQL."""
SORTS: Final = {
    "group": ("group", "group_id"),
    "credit": ("largest credit", "credit DESC NULLS LAST, group_id"),
    "reward": ("highest reward", "reward_mean DESC, group_id"),
    "spread": ("widest rewards", "reward_std DESC, group_id"),
    "queries": ("most distinct queries", "num_distinct_queries DESC, group_id"),
    "tokens": ("longest", "num_tokens DESC, group_id"),
}
_GROUPS = """
    WITH c AS (
        SELECT group_id, max(abs(log_ratio)) AS credit FROM (
            SELECT group_id, rollout_id, turn,
                avg(exp(student_logprob) * (teacher_logprob - student_logprob)) AS log_ratio
            FROM query_credit WHERE run = $run AND iteration = $iteration GROUP BY ALL
        ) GROUP BY group_id
    ), r AS (
        SELECT group_id, count(*) FILTER (outcome = 'CORRECT') AS num_correct,
            count(*) FILTER (len(queries) = 0) AS num_without_search,
            count(*) FILTER (answer IS NULL) AS num_without_answer,
            sum(num_malformed) AS num_malformed, sum(num_completion_tokens) AS num_tokens,
            list(coalesce(answer, '-') ORDER BY rollout_index) AS answers,
            list(outcome ORDER BY rollout_index) AS outcomes,
            list(queries ORDER BY rollout_index) AS queries, max(em) AS em
        FROM rollouts WHERE run = $run AND iteration = $iteration GROUP BY group_id
    ), t AS (
        SELECT regexp_replace(rollout_id, '/[^/]*$', '') AS group_id,
            count(*) FILTER (stop_reason = 'length') AS num_truncated
        FROM turns WHERE run = $run AND iteration = $iteration GROUP BY ALL
    ), s AS (
        SELECT group_id, count(*) FILTER (num_retries > 0) AS num_retried
        FROM searches WHERE run = $run AND iteration = $iteration GROUP BY group_id
    ), g AS (
        SELECT g.group_id, g.question_key, q.question, q.golden_answers, g.num_rollouts, g.reward_mean, g.reward_std,
            g.num_distinct_queries, r.* EXCLUDE (group_id), coalesce(t.num_truncated, 0) AS num_truncated,
            coalesce(s.num_retried, 0) AS num_retried, c.credit
        FROM groups AS g JOIN r USING (group_id) LEFT JOIN t USING (group_id) LEFT JOIN c USING (group_id)
        LEFT JOIN s USING (group_id)
        LEFT JOIN questions AS q ON q.run = g.run AND q.question_key = g.question_key
        WHERE g.run = $run AND g.iteration = $iteration
    )
    SELECT *, count(*) OVER () AS num_found FROM g
    WHERE {condition} AND ($text = '' OR contains(
        lower(concat_ws(' ', question, array_to_string(answers, ' '), array_to_string(flatten(queries), ' '))),
        lower($text)
    ))
    ORDER BY {order} LIMIT {limit} OFFSET $offset
"""


def groups_page(source: Source, run: str, iteration: int, asked: Mapping[str, str]) -> dict[str, Any]:
    """Return an iteration's groups as the query string filters and sorts them, a page of `PAGE_SIZE`."""
    chosen, order = asked.get("filter", "all"), asked.get("sort", "group")
    if chosen not in FILTERS or order not in SORTS:
        raise NotThereError(
            f"no filter '{chosen}' or no order '{order}'; filters: {', '.join(FILTERS)}; orders: {', '.join(SORTS)}"
        )
    number = int(asked["page"]) if asked.get("page", "").isdecimal() else 1
    sql = _GROUPS.format(condition=FILTERS[chosen][1], order=SORTS[order][1], limit=PAGE_SIZE)
    record = source.run(run)
    with source.rows() as rows:
        found = rows.all(
            sql, run=run, iteration=iteration, text=asked.get("q", ""), offset=(max(number, 1) - 1) * PAGE_SIZE
        )
        metrics = rows.all("SELECT * FROM iteration_metrics WHERE run = $run AND iteration = $i", run=run, i=iteration)
        neighbours = neighbours_of(rows, run, iteration)
    num_found = found[0]["num_found"] if found else 0
    return {
        "record": record, "iteration": iteration, "graph": graph_of(source, run, iteration),
        "groups": found, "metrics": metrics[0] if metrics else None,
        "num_found": num_found, "page": max(number, 1), "num_pages": max(1, -(-num_found // PAGE_SIZE)),
        "filters": FILTERS, "sorts": SORTS, "chosen": chosen, "order": order, "text": asked.get("q", ""),
        "neighbours": neighbours,
    }  # fmt: skip


def neighbours_of(rows: Rows, run: str, iteration: int) -> Row:
    """Return the run's iterations before (`former`) and after (`next`) one, None where there is none."""
    return rows.one(
        "",
        "SELECT max(iteration) FILTER (iteration < $i) AS former, min(iteration) FILTER (iteration > $i) AS next "
        "FROM iteration_metrics WHERE run = $run",
        run=run,
        i=iteration,
    )


def question_page(source: Source, run: str, question_key: str) -> dict[str, Any]:
    """Return what a run searched for and answered to one question, the newest iteration first."""
    record = source.run(run)
    with source.rows() as rows:
        missing = f"run '{run}' has not sampled the question '{question_key}'"
        question = rows.one(
            missing, "SELECT * FROM questions WHERE run = $run AND question_key = $key", run=run, key=question_key
        )
        rollouts = rows.all(
            "SELECT iteration, group_id, rollout_index, queries, answer, em, reward, outcome FROM rollouts "
            "WHERE run = $run AND question_key = $key ORDER BY iteration DESC, group_id, rollout_index "
            f"LIMIT {_ROLLOUTS}",
            run=run,
            key=question_key,
        )
        answers = rows.all(
            "SELECT iteration, mode, answer, queries, em FROM evaluation_answers "
            "WHERE run = $run AND question_key = $key ORDER BY iteration, mode", run=run, key=question_key
        )  # fmt: skip
    return {"record": record, "question": question, "rollouts": rollouts, "answers": answers}
