"""Studies: trained for real in two goes, and reported from evaluations that a fake trainer draws."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import flows.training.stages.update
from benchmarks.store_study import store
from flows.app import run_command
from flows.console.errors import UserError
from flows.inspect.web.report import report as write_report
from flows.run.progress import SilentReporter
from flows.study.plan import PlannedRun, load_study
from flows.study.reporting import report
from flows.study.trainings import OneByOne, RunFailure
from flows.study.work import Carried, carry_out
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.records.evaluation import EvaluationAnswer, EvaluationMode, EvaluationReport
from schemas.records.study import Study, StudyResults
from sdsearch.evaluation.intervals import paired_bootstrap
from sdsearch.seeds import derive_seed
from storage.database.rows import evaluation_rows
from storage.database.tables import insert
from storage.workspace import Workspace
from tests.support.records import make_evaluation, make_run
from tests.support.studies import study_toml

MICRO = (
    *("iterations=1", "data.questions_per_iteration=1", "rollout.group_size=2", "rollout.max_searches=1"),
    *("rollout.max_new_tokens=6", "evaluation.num_questions=2", "grpo.kl_coefficient=0"),
)
VARIANTS = ("grpo", "sd")
RUNS = ["micro-grpo-s0", "micro-grpo-s1", "micro-sd-s0", "micro-sd-s1"]
FILES = {
    *("study.json", "results.json", "table.md", "curves.csv", "curves.svg", "curves.png"),
    *("figures_dev.md", "figures_dev.csv"),
}
QUESTIONS = 12
MODES: tuple[EvaluationMode, ...] = ("greedy", "sampled")


class Trainer:
    """Trains for real, and remembers what was announced and trained."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.announced: list[tuple[str, int, bool]] = []
        self.trained: list[str] = []

    def train(self, plan: PlannedRun) -> None:
        self.trained.append(plan.run)
        self.work(plan)

    def work(self, plan: PlannedRun) -> None:
        train_plain(plan.settings, plan.run, self.workspace.root, SilentReporter())

    def announce(self, plan: PlannedRun, place: int, finished: bool) -> None:
        self.announced.append((plan.run, place, finished))

    def carry_out(self, study: Study) -> StudyResults:
        trainings = OneByOne(self.train, self.announce)
        return carry_out(study, self.workspace, trainings).checked(study, self.workspace)


class FakeTrainer(Trainer):
    """Draws what a run's evaluations before and after its only update would have found."""

    def work(self, plan: PlannedRun) -> None:
        storage = open_storage(self.workspace.root)
        changes = {"settings_json": plan.settings.model_dump_json(), "settings_hash": plan.settings.content_hash()}
        record = make_run(plan.run).model_copy(update={**changes, "status": "done", "iterations_done": 1})
        storage.ledger.create_run(record)
        for updates in (0, 1):
            drawn = [evaluation(updates, mode, drawn_ems(plan.run, updates, mode)) for mode in MODES]
            with storage.database.transaction() as connection:
                for table, rows in evaluation_rows(plan.run, updates, drawn).items():
                    insert(connection, table, rows)


def drawn_ems(run: str, updates: int, mode: EvaluationMode) -> list[float]:
    generator = np.random.default_rng(derive_seed(run, updates, mode))
    return [float(em) for em in generator.integers(0, 2, QUESTIONS)]


def evaluation(updates: int, mode: EvaluationMode, ems: list[float]) -> tuple[EvaluationReport, list[EvaluationAnswer]]:
    drawn, (answer,) = make_evaluation()
    changes = {
        "iteration": updates,
        "policy_version": updates,
        "mode": mode,
        "em": sum(ems) / len(ems),
        "dataset": "world",
    }
    answers = [answer.model_copy(update={"question_key": f"toy:{n}", "em": em}) for n, em in enumerate(ems)]
    return drawn.model_copy(update={**changes, "num_questions": len(ems)}), answers


def stage_attempts(workspace: Workspace) -> Counter[tuple[str, int, str]]:
    rows = open_storage(workspace.root).database.query("SELECT run, iteration, stage FROM stages").to_pylist()
    return Counter((row["run"], row["iteration"], row["stage"]) for row in rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "micro.toml"
    path.write_text(study_toml("micro", MICRO, seeds=(0, 1)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def study(path: Path, workspace: Workspace) -> Study:
    return load_study(str(path), workspace)


@pytest.fixture(scope="module")
def results(study: Study, workspace: Workspace) -> StudyResults:
    return FakeTrainer(workspace).carry_out(study)


def test_a_stopped_study_goes_on_in_the_middle_of_a_run(study: Study, tmp_path: Path) -> None:
    workspace, real = Workspace.open(tmp_path), flows.training.stages.update.update_policy
    calls: Counter[str] = Counter()

    def stops_in_the_second_run(*args: object, **kwargs: object) -> object:
        calls["update"] += 1
        if calls["update"] == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    one_seed = study.model_copy(update={"seeds": (0,)})
    first, second = Trainer(workspace), Trainer(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.training.stages.update, "update_policy", stops_in_the_second_run)
        with pytest.raises(KeyboardInterrupt):
            first.carry_out(one_seed)
    assert first.trained == ["micro-grpo-s0", "micro-sd-s0"]
    results = second.carry_out(one_seed)
    assert second.announced == [("micro-grpo-s0", 1, True), ("micro-sd-s0", 2, False)]
    assert second.trained == ["micro-sd-s0"]
    assert {key for key, count in stage_attempts(workspace).items() if count > 1} == {("micro-sd-s0", 1, "update")}
    assert all(outcome.finished for outcome in results.outcomes)
    assert [report.iteration for report in results.outcomes[0].evaluations] == [0, 0, 1, 1]
    assert [(summary.mode, summary.variant) for summary in results.summaries] == [
        (m, v) for m in MODES for v in VARIANTS
    ]


def test_the_figures_are_those_of_the_evaluations(results: StudyResults) -> None:
    assert [(s.mode, s.variant) for s in results.summaries] == [(m, v) for m in MODES for v in VARIANTS]
    for summary in results.summaries:
        own, baseline = (
            np.array([drawn_ems(f"micro-{variant}-s{seed}", 1, summary.mode) for seed in (0, 1)])
            for variant in (summary.variant, "grpo")
        )
        assert summary.final_em.mean == pytest.approx(own.mean())
        assert summary.final_em.std == pytest.approx(own.mean(axis=1).std(ddof=1))
        assert summary.best_em == summary.final_em, "an evaluation before training is nobody's best"
        if summary.variant == "grpo":
            assert summary.difference is None
            continue
        assert summary.difference is not None
        expected = paired_bootstrap(own, baseline, seed=1)
        assert summary.difference.mean == pytest.approx(expected.mean)
        assert (summary.difference.low, summary.difference.high) == pytest.approx(expected[1:], abs=0.03)
        assert expected.high > expected.low
        assert (summary.difference.num_seeds, summary.difference.num_questions) == (2, QUESTIONS)


def test_the_folder_has_everything_and_it_reads_back(results: StudyResults, workspace: Workspace) -> None:
    folder = workspace.study_folder("micro")
    assert {path.name for path in folder.iterdir()} == FILES
    stored = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert StudyResults.model_validate(stored) == results
    assert (folder / "curves.csv").read_text(encoding="utf-8").count("\n") == 1 + 4 * 2 * 2


@pytest.mark.parametrize("options", [[], ["--report-only"]], ids=["again", "report-only"])
def test_the_table_is_printed_again_without_training(
    results: StudyResults, workspace: Workspace, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    folder = workspace.study_folder("micro")
    table = (folder / "table.md").read_bytes()
    for name in FILES - {"study.json"}:
        (folder / name).unlink()
    assert run_command(["study", "micro", *options, "--workspace", str(workspace.root)]) == 0
    text = capsys.readouterr().out
    assert "difference to GRPO" in text
    assert f"table, figures and curves: {folder}" in text
    assert text.count("finished already") == (0 if options else 4)
    assert (folder / "table.md").read_bytes() == table
    assert {path.name for path in folder.iterdir()} == FILES
    assert not stage_attempts(workspace)


def test_ctrl_c_says_how_to_go_on(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.training.loop.train_plain", interrupted)
    assert run_command(["study", str(path), "--workspace", str(tmp_path)]) == 130
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "study run 1/4: GRPO, seed 0",
        f"interrupted; continue with: sdsearch study {path} --workspace {tmp_path}",
    ]


def test_a_changed_study_is_refused_with_the_difference(
    results: StudyResults, study: Study, workspace: Workspace
) -> None:
    changed = study.model_copy(update={"set": (*study.set, "update.learning_rate=1e-3")})
    trainer = FakeTrainer(workspace)
    with pytest.raises(UserError, match=r"run 'micro-grpo-s0' exists with other.*_rate: 0.0003 -> 0.001.*another name"):
        trainer.carry_out(changed)
    with pytest.raises(UserError, match="another name"):
        report(changed, workspace)
    assert not trainer.trained


def test_what_is_not_trained_yet_is_named_and_not_counted(
    results: StudyResults, study: Study, workspace: Workspace
) -> None:
    more = report(study.model_copy(update={"seeds": (0, 1, 2)}), workspace)
    assert more.summaries == results.summaries
    assert [outcome.run for outcome in more.outcomes if not outcome.finished] == ["micro-grpo-s2", "micro-sd-s2"]
    table = (workspace.study_folder("micro") / "table.md").read_text(encoding="utf-8")
    assert "not counted: micro-grpo-s2 (0 of 1 updates), micro-sd-s2" in table
    report(study, workspace)


def test_a_report_of_a_study_is_one_file_with_its_tables(
    results: StudyResults, study: Study, workspace: Workspace, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "study.html"
    write_report(None, str(path), out, workspace.root, Console())
    text = html.unescape(out.read_text(encoding="utf-8"))
    for summary in results.summaries:
        assert f"{summary.final_em.mean:.3f}" in text
        assert results.title_of(summary.variant) in text
    for row in results.figures[0].rows:
        assert f"{row.value.mean:.3f}" in text
    assert "Primary comparisons" in text
    assert "data:image/svg+xml;base64," in text
    assert all(outcome.run in text for outcome in results.outcomes)
    assert "sdsearch study " in text


def test_results_are_kept_with_the_documentation(
    results: StudyResults, study: Study, workspace: Workspace, tmp_path: Path
) -> None:
    page = store("micro", workspace.root, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "(micro/curves.svg)" in text
    assert {path.name for path in (tmp_path / "micro").iterdir()} == {"study.json", "curves.svg", "figures_dev.csv"}
    (figures,) = results.figures
    for row in figures.rows:
        assert f"| {results.title_of(row.variant)} |" in text
        assert f"{row.value.mean:.3f}" in text
    unfinished = tmp_path / "micro.toml"
    unfinished.write_text(study_toml("micro", MICRO, seeds=(0, 7)), encoding="utf-8")
    with pytest.raises(UserError, match=r"2 runs are not finished \(micro-grpo-s7"):
        store(str(unfinished), workspace.root, tmp_path)
    report(study, workspace)


def test_a_reason_that_ended_several_runs_is_said_once(study: Study, tmp_path: Path) -> None:
    failures = [RunFailure("a", "no model"), RunFailure("b", "the disk is full"), RunFailure("c", "no model")]
    with pytest.raises(UserError) as caught:
        Carried(None, failures).checked(study, Workspace.open(tmp_path))
    assert str(caught.value).startswith(
        "study micro: 3 of its runs failed: a, c (no model); b (the disk is full); continue it with: sdsearch study"
    )


def test_nothing_finished_is_nothing_to_report(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of its 4 runs is finished.*sdsearch study micro"):
        report(study, Workspace.open(tmp_path))


def test_under_prefect_every_training_is_a_flow_run_of_its_own(
    results: StudyResults, path: Path, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.orchestration import study_flow as module
    from flows.orchestration.train_flow import PrefectRun

    trained: list[tuple[object, ...]] = []
    artifacts: dict[str, str] = {}

    def as_flow(run: object) -> Callable[..., None]:
        def train_flow(config: str, run: str, overrides: list[str], workspace: str, resume: bool) -> None:
            trained.append((config, run, overrides[-1], workspace))
            if run == RUNS[-1]:
                raise KeyboardInterrupt

        return train_flow

    monkeypatch.setattr(PrefectRun, "flow", property(as_flow))
    monkeypatch.setattr(module, "create_markdown_artifact", lambda text, key: artifacts.update({key: text}))
    with pytest.raises(KeyboardInterrupt):
        module.study_flow.fn(str(path), str(tmp_path))
    assert trained == [("tiny", run, f"seed={run[-1]}", str(tmp_path)) for run in RUNS]
    assert module.study_flow.fn("micro", str(workspace.root)) == str(workspace.study_folder("micro"))
    assert len(trained) == 4, "finished runs are not trained again"
    assert "difference to GRPO" in artifacts["micro-study"]
    assert module.study_flow.name == "sdsearch-study"
