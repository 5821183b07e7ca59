"""The questions for reporting: read at the end, by what the protocol names, and never unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.evaluation.plan import Request, plan_run
from flows.evaluation.work import evaluate
from flows.jobs.orders import EvaluateOrder
from flows.jobs.processes import Job, JobFailure, Places
from flows.jobs.worker import carry_out
from flows.run.progress import SilentReporter
from flows.study.held_out import check_held_out
from flows.study.plan import load_study, plan_runs
from schemas.records.study import StudyResults
from storage.runs.studies import read_held_out_readings
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.studies import TWINS, study_toml

pytestmark = pytest.mark.long

PROTOCOL = """
updates = [1, 2]
report_questions = 3
"""
KEPT = ("storage.keep_evaluated=true", "evaluation.every=1")
RUNS = ("twins-grpo-s0", "twins-sd-s0")


class Stream:
    """An input that does not end while its owner lives."""

    def read(self) -> str:
        return ""


def in_this_process(jobs: Sequence[Job], workspace: Workspace, places: Places, tell: object) -> list[JobFailure]:
    from flows.console.options import make_console

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.jobs.worker._end_with", lambda stream: None)
        for job in jobs:
            assert isinstance(job.order, EvaluateOrder)
            assert carry_out(job.order, make_console(), Stream()) == 0  # type: ignore[arg-type]
    return []


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "twins.toml"
    path.write_text(study_toml("twins", (*TWINS, *KEPT), protocol=PROTOCOL), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    assert run_command(["study", str(path), "--workspace", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_the_policies_of_the_protocol_answer_and_it_is_recorded(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.study.held_out.carry_out_jobs", in_this_process)
    workspace = Workspace.open(trained)
    assert not read_held_out_readings(workspace, "twins")
    assert run_command(["study", "twins", "--report-test", "--workspace", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "test questions: 0 of 2 runs have answered them already" in said
    assert "test questions were read once (" in said
    (reading,) = read_held_out_readings(workspace, "twins")
    assert (reading.runs, reading.split, reading.num_questions) == (RUNS, "test", 3)
    results = StudyResults.model_validate_json((workspace.study_folder("twins") / "results.json").read_bytes())
    dev, test = results.figures
    assert (dev.split, test.split, test.num_questions, test.updates) == ("dev", "test", 3, (0, 1, 2))
    assert {row.updates for row in test.rows} == {None, 1, 2}
    assert "evidence" in {row.figure for row in test.rows}
    storage = Storage(workspace)
    for run in RUNS:
        plan = plan_run(storage.find_run(run), [], Request(split="test", num_questions=3, mode="greedy"))
        (other,) = evaluate(plan, storage, SilentReporter())
        (own,) = [f for f in test.runs if (f.run, f.figure, f.mode, f.updates) == (run, "f1", "greedy", 2)]
        assert own.value == pytest.approx(other.report.f1)
    assert run_command(["study", "twins", "--report-test", "--workspace", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "test questions: 2 of 2 runs have answered them already" in said
    assert "read 2 times" in said
    assert run_command(["study", "twins", "--report-only", "--workspace", str(trained)]) == 0
    assert "3 test questions of world" in capsys.readouterr().out


def test_it_is_read_when_all_runs_are_finished(path: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    study = load_study(str(path), workspace)
    with pytest.raises(UserError, match=r"1 of its 2 runs are not finished \(twins-sd-s0.*read at the end"):
        check_held_out(study, plan_runs(study), {"twins-grpo-s0"}, workspace)


def test_policies_without_a_checkpoint_are_named_before_anything_is_read(path: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    study = load_study(str(path), workspace)
    with pytest.raises(UserError, match=r"'twins-grpo-s0' has kept no checkpoint of version 1.*keep_evaluated=true"):
        check_held_out(study, plan_runs(study), set(RUNS), workspace)


def test_questions_that_choices_were_made_on_are_none_to_report_on(path: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    study = load_study(str(path), workspace)
    same = study.model_copy(update={"protocol": study.protocol.model_copy(update={"report_split": "dev"})})
    with pytest.raises(UserError, match="'dev', which the runs were evaluated on while they trained"):
        check_held_out(same, plan_runs(same), set(RUNS), workspace)
