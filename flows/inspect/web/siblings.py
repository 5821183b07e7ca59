"""The page of one group: its siblings turn by turn, each query's tokens with their credit, and the block."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from flows.inspect.web.groups import neighbours_of
from flows.inspect.web.source import Row, Rows, Source
from flows.inspect.web.spans import Piece, marked, pieces_of
from flows.inspect.web.tokens import notices_of

_WHERE = "WHERE run = $run AND iteration = $i AND group_id = $group"
_ROLLOUTS = f"""
    SELECT r.*, l.label FROM rollouts AS r
    LEFT JOIN (SELECT rollout_index, label FROM v_labels {_WHERE}) AS l USING (rollout_index)
    {_WHERE} ORDER BY rollout_index
"""
_TURNS = "SELECT * FROM turns WHERE run = $run AND iteration = $i AND rollout_id IN (SELECT unnest($ids)) ORDER BY turn"
_CREDIT = """
    SELECT c.*, t.sampled_logprobs[c.position - t.token_start + 1] AS sampled_logprob
    FROM query_credit AS c JOIN turns AS t
        ON t.run = c.run AND t.iteration = c.iteration AND t.rollout_id = c.rollout_id AND t.turn = c.turn
    WHERE c.run = $run AND c.iteration = $i AND c.group_id = $group ORDER BY c.position
"""
_AROUND = """
    SELECT max(group_id) FILTER (group_id < $group) AS former, min(group_id) FILTER (group_id > $group) AS next
    FROM groups WHERE run = $run AND iteration = $i
"""


def group_page(source: Source, run: str, iteration: int, group_id: str) -> dict[str, Any]:
    """Return a group; NotThereError when the run has none of the name in the iteration."""
    record = source.run(run)
    with source.rows() as rows:
        found = _read(rows, run, iteration, group_id)
        found["neighbours"] = neighbours_of(rows, run, iteration)
    credit = found.pop("credit")
    siblings = _siblings(found["group"], found.pop("rollouts"), found.pop("turns"), credit, found.pop("searches"))
    return {
        **found,
        "record": record,
        "iteration": iteration,
        "siblings": siblings,
        "has_credit": bool(credit),
        "notices": notices_of(credit),
    }


def _read(rows: Rows, run: str, iteration: int, group_id: str) -> dict[str, Any]:
    by = {"run": run, "i": iteration, "group": group_id}
    missing = f"run '{run}' has no group '{group_id}' in iteration {iteration}"
    own = rows.one(missing, f"SELECT question_key, policy_version FROM groups {_WHERE}", **by)
    rollouts = rows.all(_ROLLOUTS, **by)
    ids = [rollout["rollout_id"] for rollout in rollouts]
    return {
        "group": {**rows.one(missing, f"SELECT * FROM v_groups {_WHERE}", **by), **own},
        "rollouts": rollouts,
        "turns": rows.all(_TURNS, run=run, i=iteration, ids=ids),
        "credit": rows.all(_CREDIT, **by),
        "searches": rows.all(f"SELECT * FROM searches {_WHERE} ORDER BY turn", **by),
        "blocks": rows.all(f"SELECT * FROM hindsight_blocks {_WHERE} ORDER BY block_index", **by),
        "retries": rows.all(f"SELECT * FROM retries {_WHERE} ORDER BY rollout_index", **by),
        "around": rows.one(missing, _AROUND, **by),
    }


def _siblings(
    group: Row, rollouts: Sequence[Row], turns: Sequence[Row], credit: Sequence[Row], searches: Sequence[Row]
) -> list[Row]:
    golden = group["golden_answers"] or ()
    finders: dict[str, set[str]] = defaultdict(set)
    for search in searches:
        for passage in search["passage_ids"]:
            finders[passage].add(search["rollout_id"])
    num_siblings = Counter({passage: len(found) for passage, found in finders.items()})
    credit_of: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in credit:
        credit_of[row["rollout_id"], row["turn"]].append(row)
    search_of = {(search["rollout_id"], search["turn"]): search for search in searches}
    turns_of: dict[str, list[Row]] = defaultdict(list)
    for turn in turns:
        key = turn["rollout_id"], turn["turn"]
        passages = _passages(search_of.get(key), num_siblings)
        turns_of[turn["rollout_id"]].append(_turn(turn, credit_of[key], passages, golden))
    return [{**rollout, "turns": turns_of[rollout["rollout_id"]]} for rollout in rollouts]


def _passages(search: Row | None, num_siblings: Counter[str]) -> list[Row]:
    """Return what a search found, each passage with how many siblings found it too."""
    if search is None:
        return []
    columns = (search["passage_ids"], search["titles"], search["scores"], search["golden"])
    return [
        {"id": passage, "title": title, "score": score, "is_golden": golden, "num_siblings": num_siblings[passage]}
        for passage, title, score, golden in zip(*columns, strict=True)
    ]


def _turn(turn: Row, credit: Sequence[Row], passages: Sequence[Row], golden: Sequence[str]) -> Row:
    ratios = [row["teacher_logprob"] - row["student_logprob"] for row in credit]
    return {
        **turn,
        "pieces": [_shown(piece, golden) for piece in pieces_of(turn["text"], credit)],
        "observation": marked(turn["observation_text"] or "", golden),
        "passages": passages,
        "log_ratio": sum(ratios) / len(ratios) if ratios else None,
    }


def _shown(piece: Piece, golden: Sequence[str]) -> Row:
    parts = marked(piece.text, golden if piece.kind == "answer" else ())
    return {"kind": piece.kind, "tokens": piece.tokens, "parts": parts}
