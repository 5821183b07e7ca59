"""Further sets that a run is evaluated on while it trains: each at its own size and interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.app import run_command
from flows.settings.load import load_settings
from schemas.errors import UserError
from schemas.settings.data import SetName
from storage.storage import Storage
from storage.workspace import Workspace

SETS = "evaluation.sets={ 'world:test' = { num_questions = 3, every = 2 }, 'world:train' = { num_questions = 2 } }"
SMALL = [
    "iterations=3",
    "evaluation.modes=['greedy']",
    "evaluation.every=1",
    "evaluation.num_questions=4",
    "storage.keep_checkpoints=2",
]


def names(settings_of: list[str], iteration: int) -> list[tuple[str, int, bool]]:
    settings = load_settings("tiny", [*SMALL, *settings_of])
    return [(str(name), number, further) for name, number, further in settings.evaluated_after(iteration)]


def test_each_set_has_its_own_size_and_interval() -> None:
    assert names([SETS, "iterations=30"], 1) == [("world:dev", 4, False)]
    assert names([SETS, "iterations=30"], 2) == [("world:dev", 4, False), ("world:test", 3, True)]
    assert names([SETS, "iterations=30"], 20)[2:] == [("world:train", 2, True)]
    assert names([SETS, "iterations=30", "evaluation.every=7"], 2) == [("world:test", 3, True)]
    assert [name for name, _, _ in names([SETS], 3)] == ["world:dev", "world:test", "world:train"], "the last iteration"
    assert names([], 1) == [("world:dev", 4, False)]


def test_all_is_every_test_set_that_is_not_named() -> None:
    sets = "evaluation.sets={ all = { num_questions = 5, every = 1 }, 'nq' = { every = 2 } }"
    found = names(["data.test=['nq', 'popqa', 'world:dev']", sets], 1)
    assert found == [("world:dev", 4, False), ("popqa:test", 5, True)], "the main set is evaluated once"
    settings = load_settings("tiny", ["data.test=['nq']", sets])
    assert list(settings.evaluation.further_sets(settings.data)) == [SetName("nq", "test")]


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        ("{ 'world:dev' = {} }", "names the set that the run itself is evaluated on"),
        ("{ nq = {}, 'nq:test' = {} }", "names a data set's split twice"),
        ("{ nq = { every = 0 } }", "evaluation.sets.nq.every: expected integer ≥ 1, got 0"),
        (
            "{ nq = { evry = 2 } }",
            "'evaluation.sets.nq.evry'; did you mean 'evaluation.sets.nq.every'?",
        ),
        ("{ nq = 5 }", "evaluation.sets: expected table of tables with num_questions and every, got 5"),
        ("{ 'n q' = {} }", "'n q' is no 'name' or 'name:split' of a data set"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(sets: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings("tiny", [f"evaluation.sets={sets}"])
    assert problem in str(caught.value)


def rows(workspace: Path, sql: str) -> list[tuple[Any, ...]]:
    found = Storage(Workspace(workspace)).database.query(sql).to_pylist()
    return [tuple(row.values()) for row in found]


@pytest.mark.long
def test_a_run_has_a_row_and_a_line_for_each_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [text for override in [*SMALL, SETS] for text in ("--set", override)]
    command = ["train", "tiny", "--run", "r", "--no-prefect", "--workspace", str(tmp_path), *options]
    assert run_command(command) == 0
    said = capsys.readouterr().out
    assert "evaluation after 2 updates (greedy, 3 world test questions): EM " in said
    assert "evaluation after 2 updates (greedy, 4 dev questions): EM " in said
    assert said.count("EM, greedy") == 3, "each set before and after"
    counted = rows(tmp_path, "SELECT iteration, split, num_questions, further FROM evaluations ORDER BY ALL")
    assert counted == [
        (0, "dev", 4, False), (0, "test", 3, True), (0, "train", 2, True), (1, "dev", 4, False), (2, "dev", 4, False),
        (2, "test", 3, True), (3, "dev", 4, False), (3, "test", 3, True), (3, "train", 2, True),
    ]  # fmt: skip
    main = "SELECT iteration, em FROM evaluations WHERE split = 'dev' ORDER BY 1"
    shown = "SELECT iteration, greedy_em FROM v_iterations WHERE greedy_em IS NOT NULL ORDER BY 1"
    assert rows(tmp_path, shown) == rows(tmp_path, main), "further sets do not enter the run's own figure"
    assert run_command(["show", "r", "--workspace", str(tmp_path)]) == 0
    assert "further sets" in capsys.readouterr().out
    before = rows(tmp_path, "SELECT * FROM evaluation_answers ORDER BY ALL")
    assert run_command(["resume", "r", "--workspace", str(tmp_path)]) == 0, "nothing is left to do"
    (tmp_path / "sdsearch.duckdb").unlink()
    assert run_command(["db", "rebuild", "--workspace", str(tmp_path)]) == 0
    assert rows(tmp_path, "SELECT * FROM evaluation_answers ORDER BY ALL") == before
