"""Names that become paths are refused wherever they come in, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.app import run_command
from flows.orchestration.train_flow import train_flow
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.records.study import Study
from schemas.settings.root import DataSettings, EvaluationSettings
from sdsearch.data.questions import read_questions
from sdsearch.data.readers import DataError
from storage.errors import StorageError, WorkspaceError
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.runs.ledger import Ledger
from storage.runs.lock import RunLock, lock_holder
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_run

BAD = [
    "../outside",
    "a/../../outside",
    "/tmp/outside",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "-leading",
    "--help",
    "",
    " ",
    "a b",
    "a\nb",
    "a\n",
    "a\0b",
    "a\x1b[31m",
    "x" * 81,
    "ａ",  # a full-width letter
    "аdmin",  # the first letter is Cyrillic
    "a\u202eb",
    "a\u2044b",  # a slash that is none
    "é",
    "a:b",
    "a'b",
    "*",
    "~",
    "$HOME",
]
each_bad_name = pytest.mark.parametrize("name", BAD, ids=ascii)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@each_bad_name
def test_no_path_of_a_workspace_takes_it(name: str, workspace: Workspace) -> None:
    artifacts, run = ArtifactStore(workspace), make_run("x").model_copy(update={"run": name})
    before = everything(workspace.root.parent)
    uses: list[Callable[[], object]] = [
        lambda: workspace.run_folder(name),
        lambda: workspace.checkpoints(name),
        lambda: workspace.checkpoint(name, 1),
        lambda: workspace.stage_folder(StageKey(run=name, iteration=1, stage="sample")),
        lambda: workspace.lock(name),
        lambda: workspace.study_folder(name),
        lambda: RunLock(workspace, name),
        lambda: lock_holder(workspace, name),
        lambda: CheckpointStore(workspace).write(name, 1, lambda folder: None),
        lambda: CheckpointStore(workspace).prune(name, keep=()),
        lambda: artifacts.write_tensors(StageKey(run=name, iteration=1, stage="sample"), "x", {}),
        lambda: Ledger(artifacts).create_run(run),
    ]
    for use in uses:
        with pytest.raises(WorkspaceError, match="cannot be used: a name has 1 to 80 ASCII letters"):
            use()
    assert everything(workspace.root.parent) == before


@each_bad_name
def test_no_file_of_a_stage_takes_it(name: str, workspace: Workspace) -> None:
    key = StageKey(run="x", iteration=1, stage="sample")
    if name not in ("é", "ａ"):  # those are refused too, by the same rule; a dot or a dash may come later in a name
        with pytest.raises(WorkspaceError, match="cannot be used"):
            ArtifactStore(workspace).write_tensors(key, name, {})


@each_bad_name
def test_no_setting_takes_it(name: str) -> None:
    for field in ("dataset", "train_split"):
        with pytest.raises(ValidationError, match="cannot be used: a name has"):
            DataSettings.model_validate({field: name})
    with pytest.raises(ValidationError, match="cannot be used: a name has"):
        EvaluationSettings(split=name)


@each_bad_name
def test_no_study_takes_it(name: str) -> None:
    plan = {"base": "tiny", "baseline": "a", "seeds": [0]}
    for names in ({"name": name, "variants": {"a": {}}}, {"name": "s", "variants": {"a": {}, name: {}}}):
        with pytest.raises(ValidationError, match=r"cannot be (used|named so): a name has"):
            Study.model_validate({**plan, **names})


@pytest.mark.parametrize("name", ["../outside", "-x", "a\x1b[31m\0b"], ids=ascii)
def test_no_command_takes_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "workspace"
    storage = Storage(Workspace.open(folder))
    settings = load_settings("tiny")
    storage.create_run(make_run("first").model_copy(update={"settings_json": settings.model_dump_json()}))
    assert storage.sync.flush()
    before = everything(tmp_path)
    commands = [
        ["train", "tiny", f"--run={name}"],
        ["train", "tiny", f"--run={name}", "--no-prefect"],
        ["train", "tiny", "--run=x", "--no-prefect", "--set", f"data.train_split={json.dumps(name)}"],
        ["resume", "--no-prefect", "--", name],
        ["show", "--", name],
        ["evaluate", f"--run={name}"],
        ["evaluate", f"--split={name}", "--config=tiny"],
        ["study", "--report-only", "--", name],
        ["train", "tiny", "--run=first", f"--fork={name}"],
        ["replay", "first", "--iterations=1", f"--run={name}"],
        ["replay", "--iterations=1", "--", name],
    ]
    for command in commands:
        at = next((i for i, word in enumerate(command) if word == "--"), len(command))
        assert run_command([*command[:at], "--workspace", str(folder), *command[at:]]) == 2, command
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err
        assert name.isprintable() or name not in captured.err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["../outside", "a\nb", "-x"], ids=ascii)
def test_no_parameter_of_the_flow_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody there, and nobody asked
    for parameters in ({"run": name}, {"run": name, "resume": True}):
        with pytest.raises(StorageError, match=r"cannot be used|no run"):
            train_flow.fn(config="tiny", workspace=str(tmp_path / "workspace"), **parameters)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "workspace" / "artifacts").exists()


@pytest.mark.parametrize("name", ["../outside", "-x", "a\nb"], ids=ascii)
def test_no_run_of_the_library_takes_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="cannot be used"):
        train_plain(load_settings("tiny"), name, tmp_path / "workspace", SilentReporter())
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../outside", "..", ""])
def test_a_reference_cannot_lead_out_of_the_workspace(name: str, workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="leads out of the workspace"):
        workspace.resolve(name)


def write_question(path: Path, line: bytes) -> Path:
    path.write_bytes(line + b"\n")
    return path


@pytest.mark.parametrize("id", ["a\\u0000b", "a\\nb", "a\\u001b[31m", "a\\u202eb", "x" * 201], ids=ascii)
def test_question_ids_that_are_no_ids(id: str, tmp_path: Path) -> None:
    line = f'{{"id": "{id}", "question": "Who?", "golden_answers": ["x"]}}'
    with pytest.raises(DataError, match=r"q\.jsonl, line 1: 'id' is .*expected at most 200 characters"):
        list(read_questions(write_question(tmp_path / "q.jsonl", line.encode()), "nq", "dev"))


@pytest.mark.parametrize("text", [b"\\ud800", b"\xed\xa0\x80"])
def test_half_a_character_is_refused_where_it_is_read(text: bytes, tmp_path: Path) -> None:
    """It could not be stored as UTF-8, and so would end a run after the rollouts were paid for."""
    line = b'{"id": "1", "question": "Who ' + text + b'?", "golden_answers": ["x"]}'
    with pytest.raises(DataError, match=r"q\.jsonl, line 1: half a surrogate pair"):
        list(read_questions(write_question(tmp_path / "q.jsonl", line), "nq", "dev"))


def test_odd_ids_that_are_ids_and_pairs_of_surrogates_are_read(tmp_path: Path) -> None:
    line = b'{"id": "../a:b/\xc3\xa9 \'x\'", "question": "\\ud83d\\ude00?", "golden_answers": ["x"]}'
    (question,) = read_questions(write_question(tmp_path / "q.jsonl", line), "nq", "dev")
    assert question.id == "../a:b/é 'x'"
    assert question.question == "\U0001f600?"
