"""Tables and views say what the records say."""

from __future__ import annotations

from math import exp
from pathlib import Path
from statistics import stdev

import pytest

from schemas.records.ledger import ArtifactRef
from schemas.records.run_kind import ReplayKind
from storage.database.canned import list_canned, load_canned
from storage.database.connection import Database
from storage.database.rollout_rows import score_rows
from storage.database.rows import SHARED_TABLES, STAGE_TABLES, teacher_rows
from storage.database.tables import insert, table_schemas
from storage.errors import QueryError
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import all_rows, fill, make_credit, make_groups, make_run, make_scores


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(Workspace.open(tmp_path), deadline_s=20.0)


@pytest.fixture
def filled(database: Database) -> Database:
    fill(database, all_rows(make_groups()))
    return database


@pytest.fixture
def replayed(filled: Database) -> Database:
    """With a replay of iterations 3 to 5, not done yet, whose teacher thinks otherwise of the one CORRECT rollout.

    Iteration 4 had no teacher in the source; iteration 5 has none in the replay.
    """
    source = make_run()
    replay = source.model_copy(
        update={"run": "first-replay", "kind": ReplayKind(source="first", first=3, last=5), "num_iterations": 3}
    )
    storage = Storage(Workspace.open(filled.path.parent))
    for record in (source, replay):
        storage.create_run(record)
    assert storage.sync.flush()
    other = {"teacher_logprob": -2.0, "jsd": 0.3, "divergence": 0.4, "teacher_entropy": 0.5}
    groups, changed = make_groups(), []
    for credit in make_credit(groups):
        is_correct = credit.rollout_id.endswith("andorra/0")
        changed += [credit.model_copy(update=other if is_correct else {})]
        changed += [changed[-1].model_copy(update={"position": credit.position + 20, "jsd": 9.0})] * is_correct
    tensors = ArtifactRef(path="a", sha256="b", size_bytes=0)
    with filled.transaction() as connection:
        for run, iteration, credit in (
            ("first-replay", 3, changed),
            ("first-replay", 4, make_credit(groups)),
            ("first", 5, make_credit(groups)),
        ):
            rows = all_rows(groups, run, iteration)
            rows |= teacher_rows(run, iteration, [], credit, tensors)
            for name in ("rollouts", "turns", "query_credit"):
                insert(connection, name, rows[name])
    return filled


def one_row(database: Database, sql: str) -> dict[str, object]:
    (row,) = database.query(sql).to_pylist()
    return row


def test_every_table_belongs_to_one_stage_to_the_ledger_or_to_the_prepared_questions() -> None:
    owned = [name for tables in (*STAGE_TABLES.values(), *SHARED_TABLES.values()) for name in tables]
    assert sorted([*owned, "runs", "warnings", "stages", "workspace", "question_sets", "prepared_questions"]) == sorted(
        table_schemas()
    )


def test_every_table_view_and_column_is_described_and_every_table_has_a_key(database: Database) -> None:
    bare = database.query(
        "SELECT table_name AS name FROM duckdb_tables() WHERE comment IS NULL "
        "UNION ALL SELECT view_name FROM duckdb_views() WHERE comment IS NULL AND NOT internal"
    )
    assert bare.to_pylist() == []
    columns = database.query("SELECT table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal")
    assert [(r["table_name"], r["column_name"]) for r in columns.to_pylist() if not (r["comment"] or "").strip()] == []
    tables = set(table_schemas())
    assert {row["table_name"] for row in columns.to_pylist()} > tables
    keyed = database.query("SELECT table_name FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'")
    assert set(keyed.column("table_name").to_pylist()) == tables


def test_rollouts_turns_and_searches_say_what_the_records_say(filled: Database) -> None:
    first, second = make_groups()[0].rollouts
    row = one_row(filled, "SELECT * FROM rollouts WHERE rollout_id = '3/andorra/0'")
    assert row["num_tokens"] == len(first.token_ids) == 11
    assert row["num_completion_tokens"] == len(first.completion_positions) == 8
    assert row["num_query_tokens"] == len(first.query_positions) == 2
    assert (row["reward"], row["advantage"], row["em"]) == (1.0, 0.7, 1.0)
    assert (row["queries"], row["answer"], row["rollout_index"]) == (["capital Andorra"], "Andorra la Vella", 0)
    turns = filled.query("SELECT * FROM turns WHERE rollout_id = '3/andorra/1' ORDER BY turn").to_pylist()
    assert [turn["action"] for turn in turns] == ["malformed", "answer"]
    assert [turn["token_start"] for turn in turns] == [0, 5]
    for turn, record in zip(turns, second.turns, strict=True):
        start = turn["token_start"]
        assert tuple(turn["token_ids"]) == second.token_ids[start : start + len(record.generation.token_ids)]
        assert tuple(turn["sampled_logprobs"]) == record.generation.sampled_logprobs
    assert [turn["observation_kind"] for turn in turns] == ["notice", None]
    assert turns[1]["observation_token_ids"] is None
    search = one_row(filled, "SELECT * FROM searches WHERE rollout_id = '3/andorra/0'")
    assert (search["passage_ids"], search["titles"]) == (["p1", "p2"], ["Andorra", "Oslo"])
    assert (search["scores"], search["golden"], search["hit"]) == ([0.75, 0.25], [True, False], True)
    misses = filled.query("SELECT hit, num_hits FROM searches WHERE group_id = '3/norway' ORDER BY rollout_id, turn")
    assert misses.to_pylist() == [{"hit": False, "num_hits": n} for n in (1, 0)]
    unsent = one_row(filled, "SELECT * FROM rollouts JOIN turns USING (rollout_id) WHERE query = 'Oslo city'")
    assert (unsent["queries"], unsent["num_query_tokens"]) == (["Oslo"], 2)


def test_iteration_metrics_are_the_means_that_hand_counting_gives(filled: Database) -> None:
    row = one_row(filled, "SELECT * FROM iteration_metrics")
    expected = {
        "run": "first",
        "iteration": 3,
        "policy_version": 3,
        "num_groups": 2,
        "num_rollouts": 4,
        "reward_mean": 0.25,
        "reward_std": 0.5,
        "em": 0.25,
        "f1": 0.25,
        "valid_share": 0.25,
        "malformed_share": 2 / 8,
        "zero_advantage_share": 0.5,
        "all_correct_share": 0.0,
        "all_incorrect_share": 0.5,
        "searches_per_rollout": 0.75,
        "distinct_queries_per_group": 1.0,
        "search_quality": 1 / 3,
        "completion_tokens_mean": (8 + 6 + 8 + 10) / 4,
        "num_completion_tokens": 32,
        "num_retries": 0,
        "num_retries_correct": 0,
        "num_retry_tokens": 0,
        "num_filtered_groups": 0,
        "num_replacement_groups": 0,
    }
    assert row == pytest.approx(expected)
    groups = filled.query("SELECT reward_std, zero_advantage FROM groups ORDER BY group_id").to_pylist()
    assert groups[0] == {"reward_std": pytest.approx(stdev([1.0, 0.0])), "zero_advantage": False}
    assert groups[1] == {"reward_std": 0.0, "zero_advantage": True}


def test_labels_of_the_metrics_follow_metric_and_rho() -> None:
    groups = make_groups()
    scores = [score.model_copy(update={"f1": 0.5}) for score in make_scores(groups)]

    def shares(**settings: object) -> tuple[float, float]:
        table = score_rows("first", 3, groups, scores, **settings)["iteration_metrics"]  # type: ignore[arg-type]
        (row,) = table.to_pylist()
        return row["all_correct_share"], row["all_incorrect_share"]

    assert shares() == (1.0, 0.0)
    assert shares(rho=0.5) == (0.0, 1.0)
    assert shares(label_metric="em") == (0.0, 0.5)


def test_a_rollout_without_a_score_is_refused() -> None:
    groups = make_groups()
    with pytest.raises(ValueError, match="1 rollouts have no score, the first is '3/norway/1'"):
        score_rows("first", 3, groups, make_scores(groups)[:-1])


def test_a_query_has_its_label_and_the_mean_credit_of_its_own_tokens(filled: Database) -> None:
    rows = filled.query("SELECT * FROM v_queries ORDER BY rollout_id, turn").to_pylist()
    assert [(row["query"], row["label"], row["mean_log_ratio"]) for row in rows] == [
        ("capital Andorra", "CORRECT", pytest.approx(0.5)),
        ("Oslo", "INCORRECT", pytest.approx(-0.25)),
        ("Oslo", "INCORRECT", pytest.approx(-0.25)),
    ]
    assert [row["num_tokens"] for row in rows] == [2, 2, 2]
    assert {row["mean_jsd"] for row in rows} == {0.125}


def test_credit_outside_the_query_does_not_count_for_it(database: Database) -> None:
    groups = make_groups()
    rows = all_rows(groups)
    credit = make_credit(groups)
    outside = credit[0].model_copy(update={"position": 0, "teacher_logprob": -9.0})
    rows |= {
        "query_credit": teacher_rows(
            "first", 3, [], [outside, *credit], ArtifactRef(path="a", sha256="b", size_bytes=0)
        )["query_credit"]
    }
    fill(database, rows)
    row = one_row(database, "SELECT * FROM v_queries WHERE rollout_id = '3/andorra/0'")
    assert (row["mean_log_ratio"], row["num_tokens"]) == (pytest.approx(0.5), 2)


def test_the_iteration_view_puts_everything_on_one_row(filled: Database) -> None:
    row = one_row(filled, "SELECT * FROM v_iterations")
    assert (row["run"], row["iteration"], row["num_steps"]) == ("first", 3, 2)
    assert (row["reward_mean"], row["loss"], row["ratio_max"]) == (0.25, 1.0, 2.5)
    assert row["grad_norm_ratio"] == pytest.approx(0.25)
    assert row["entropy_gap"] == pytest.approx(0.25)
    assert row["log_ratio_correct"] == pytest.approx(0.5)
    assert row["log_ratio_incorrect"] == pytest.approx(-0.25)
    assert (row["sample_s"], row["update_s"], row["teacher_s"], row["total_s"]) == (2.0, 2.0, None, 4.0)
    assert row["sample_tokens_per_s"] == pytest.approx(16.0)
    assert row["update_tokens_per_s"] == pytest.approx(80 / 2.0), "tokens of the update over seconds of its stage"
    assert (row["greedy_em"], row["sampled_em"]) == (0.0, None)


LOGGED = {
    "rollouts": {
        "reward_mean", "reward_std", "em", "f1", "zero_advantage_share", "all_correct_share", "all_incorrect_share",
        "searches_per_rollout", "distinct_queries_per_group", "malformed_share", "valid_share", "search_quality",
        "completion_tokens_mean",
    },
    "blocks": {
        "num_blocks", "num_dropped_attempts", "dropped_attempt_share", "shortened_attempt_share", "cut_token_share",
        "empty_block_share", "block_tokens_mean",
    },
    "update": {
        "policy_loss", "sd_loss", "kl", "entropy", "grad_norm_grpo", "grad_norm_sd", "grad_norm_ratio", "clip_share",
        "truncated_share", "ratio_max", "sampler_kl", "learning_rate", "alpha",
    },
    "teacher": {"teacher_entropy", "student_entropy", "entropy_gap", "mean_jsd"},
    "stages": {
        f"{stage}_{unit}"
        for stage in ("sample", "score", "hindsight", "teacher", "update", "evaluate")
        for unit in ("s", "tokens_per_s")
    },
}  # fmt: skip


@pytest.mark.parametrize("part", LOGGED)
def test_what_is_to_be_logged_is_a_column_of_the_iteration(filled: Database, part: str) -> None:
    row = one_row(filled, "SELECT * FROM v_iterations")
    unmeasured = {name for name in row if name.startswith(("score", "hindsight", "teacher_s", "teacher_t", "evaluate"))}
    assert LOGGED[part] <= set(row)
    assert {name for name in LOGGED[part] if row[name] is None} <= unmeasured, "those stages took no time here"
    if part == "update":
        steps = filled.query("SELECT * FROM v_steps ORDER BY step").to_pylist()
        assert LOGGED[part] <= set(steps[0])
        assert [step["grad_norm_ratio"] for step in steps] == [0.25, None]
        assert [step["sd_signal_to_noise"] for step in steps] == [2.0, None]
        assert row["sd_signal_to_noise"] == 2.0


def test_speeds_are_tokens_over_the_seconds_of_their_stage(filled: Database) -> None:
    with filled.transaction() as connection:
        connection.execute(
            "INSERT INTO stages BY NAME SELECT stages.* REPLACE (v AS stage, 4.0 AS duration_s) FROM stages, "
            "(VALUES ('score'), ('hindsight'), ('teacher'), ('evaluate')) AS more (v) WHERE stage = 'sample'"
        )
    row = one_row(filled, "SELECT * FROM v_iterations")
    assert {name: row[name] for name in row if name.endswith("_tokens_per_s")} == {
        "sample_tokens_per_s": 32 / 2,
        "score_tokens_per_s": 32 / 4,
        "hindsight_tokens_per_s": 2 * 2 / 4,
        "teacher_tokens_per_s": 4 * 30 / 4,
        "update_tokens_per_s": 80 / 2,
        "evaluate_tokens_per_s": 20 / 4,
    }
    assert (row["num_blocks"], row["num_dropped_attempts"], row["block_tokens_mean"]) == (2, 0, 2)


def test_groups_learning_curve_and_rollouts_read_as_people_ask(filled: Database) -> None:
    group = one_row(filled, "SELECT * FROM v_groups WHERE num_correct > 0")
    assert (group["num_correct"], group["num_incorrect"]) == (1, 1)
    assert group["answers"] == ["Andorra la Vella", "Paris"]
    assert group["queries_by_rollout"] == [["capital Andorra"], []]
    assert group["rewards"] == [1.0, 0.0]
    curve = one_row(filled, "SELECT * FROM v_learning_curve")
    assert (curve["updates_done"], curve["greedy_f1"], curve["sampled_f1"]) == (4, 0.25, None)
    rollout = one_row(filled, "SELECT * FROM v_rollouts WHERE rollout_id = '3/andorra/1'")
    assert (rollout["question"], rollout["label"]) == ("What is the capital of Andorra?", "INCORRECT")


def test_a_replay_stands_beside_its_source_over_the_iterations_that_both_have(replayed: Database) -> None:
    rows = replayed.query("SELECT * FROM v_replays WHERE paired ORDER BY place").to_pylist()
    assert {(row["run"], row["source_run"], tuple(row["iterations"])) for row in rows} == {
        ("first-replay", "first", (3,))
    }
    figures = {row["figure"]: (row["source"], row["replay"]) for row in rows}
    correct, incorrect = "queries of CORRECT rollouts", "queries of INCORRECT rollouts"
    p, q = exp(-1.0), exp(-2.0)
    expected = {
        "mean JSD": (0.125, (2 * 0.3 + 4 * 0.125) / 6),
        f"JSD, {correct}": (0.125, 0.3),
        f"JSD, {incorrect}": (0.125, 0.125),
        f"teacher probability, {correct}": (exp(-0.5), q),
        f"teacher probability, {incorrect}": (exp(-1.25), exp(-1.25)),
        f"student probability, {correct}": (p, p),
        f"student probability, {incorrect}": (p, p),
        f"log-ratio, {correct}": (0.5, -1.0),
        f"log-ratio, {incorrect}": (-0.25, -0.25),
        "entropy gap, student - teacher": (0.25, (2 * 0.75 + 4 * 0.25) / 6),
        # Of the three rollouts with a query the first has four distilled tokens now: two of them are not a query's.
        "L_SD, as each run measures it": (0.1, (0.4 + 0.1 + 0.1) / 3),
        "query tokens": (6, 6),
        "distilled tokens": (6, 8),
    }
    assert figures == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_where_the_source_has_no_teacher_its_column_is_empty(replayed: Database) -> None:
    shipped = replayed.read_only_user_query(load_canned("replay").sql, {"run": "first-replay"}).records()
    rows = [row for row in shipped if row["iterations"] != "[3]"]
    assert {row["iterations"] for row in rows} == {"[4]"}
    assert {row["source"] for row in rows} == {None}
    assert rows[0]["replay"] == pytest.approx(0.125)


def test_queries_that_the_student_would_not_write_come_after_those_that_it_would(filled: Database) -> None:
    queries = filled.query("SELECT DISTINCT query, rollout_id FROM v_queries WHERE mean_jsd IS NOT NULL").to_pylist()
    garbled, plausible = (row["rollout_id"] for row in queries[:2])
    with filled.transaction() as connection:
        for sign in (1, -1):
            for rollout, student, teacher in ((garbled, -8.0, -8.0 + 5 * sign), (plausible, -1.0, -1.0 + 0.5 * sign)):
                connection.execute(
                    "UPDATE query_credit SET student_logprob = ?, teacher_logprob = ? WHERE rollout_id = ?",
                    [student, teacher, rollout],
                )
            name = "best_queries" if sign > 0 else "worst_queries"
            rows = connection.sql(load_canned(name).sql, params={"run": "first"}).to_arrow_table().to_pylist()
            found = [row["rollout_id"] for row in rows if row["rollout_id"] in (garbled, plausible)]
            assert found == [plausible, garbled]


def test_every_canned_query_runs_and_finds_the_rows(filled: Database) -> None:
    results = {}
    for query in list_canned():
        values = {"rollout": "3/andorra/0", "run": "first"}
        assert "run" in query.parameters
        assert set(query.parameters) <= set(values)
        parameters = {name: values[name] for name in query.parameters}
        results[query.name] = filled.read_only_user_query(query.sql, parameters).records()
    assert set(results) >= {"learning_curve", "stage_seconds", "latest_metrics"}
    assert results["best_queries"][0]["query"] == "capital Andorra"
    assert results["worst_queries"][0]["label"] == "INCORRECT"
    assert [row["group_id"] for row in results["mixed_groups"]] == ["3/andorra"]
    assert [(row["author"], row["text"]) for row in results["rollout_text"]] == [
        ("question", "What is the capital of Andorra?"),
        ("golden answers", "Andorra la Vella"),
        ("policy", "<search>"),
        ("environment", "reply"),
        ("policy", "<answer>"),
        ("score", "CORRECT: reward 1.000, advantage +0.700, EM 1, F1 1.00"),
    ]
    credit = [row["mean_log_ratio"] for row in results["rollout_text"]]
    assert [value is None for value in credit] == [True, True, False, True, True, True]
    with pytest.raises(QueryError, match="did you mean 'learning_curve'"):
        load_canned("learning_curves")
