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
