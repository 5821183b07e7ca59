"""A workspace that was really trained, and copies of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from flows.inspect.web.server import build_app
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.records.evaluation import EvaluationConditions
from storage.database.stage_rows import CONDITIONS, file_of
from storage.workspace import Workspace

QUICK = ["evaluation.num_questions=4", "data.questions_per_iteration=3", "model.torch_threads=1", "iterations=2"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("inspect") / "workspace"
    train_plain(
        load_settings("tiny", [*QUICK, "distillation.warmup_iterations=0"]), "first", workspace, SilentReporter()
    )
    return workspace


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    """A copy of a trained workspace, as one that was sent from elsewhere."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.fixture
def pages(workspace: Path) -> Iterator[TestClient]:
    with TestClient(build_app(Workspace(workspace)), base_url="http://127.0.0.1") as client:
        yield client


def rows(workspace: Path, sql: str) -> list[dict]:
    return open_storage(workspace).database.query(sql).to_pylist()


def group_path(workspace: Path, where: str = "true") -> str:
    found = rows(workspace, f"SELECT iteration, group_id FROM query_credit WHERE {where} ORDER BY ALL LIMIT 1")[0]
    return f"/runs/first/iterations/{found['iteration']}/groups/{quote(found['group_id'], safe='')}"


def told(workspace: Path, run: str = "first") -> list[str]:
    """What the evaluations of a run were made under, as the terminal says it, from their files."""
    storage = open_storage(workspace)
    done = [record for _, history in storage.ledger.histories(run) if (record := history.done) is not None]
    made_under = [
        each
        for record in done
        if record.stage == "evaluate"
        for each in storage.artifacts.read_records(file_of(record, CONDITIONS), EvaluationConditions)
    ]
    return list(dict.fromkeys(each.told for each in made_under))


def judge(workspace: Path) -> None:
    """Let a judge have called 0.123 of the answers of every evaluation right."""
    with open_storage(workspace).database.transaction() as connection:
        connection.execute(
            "INSERT INTO judged_evaluations SELECT run, iteration, mode, dataset, split, 'm', 'p', num_questions, "
            "0.123 FROM evaluations"
        )
