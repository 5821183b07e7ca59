"""Screening: what turns are worth against draws made one by one, a stop on the way, a ranking that is known."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.run.live import open_runtime
from flows.run.progress import SilentReporter
from flows.screen.agree import compare, predictions
from flows.screen.plan import ScreenPlan, plan_screen, read_variants
from flows.screen.truth import EVIDENCE, choose_groups, points_of
from flows.screen.work import screen
from flows.settings.load import load_settings, stored_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.screen import DrawnF1, ScreenedTurn, TurnCredit
from schemas.records.study import Study, Variant
from schemas.records.study_figures import Estimate, FigureRow, StudyFigures
from sdsearch.credit.scoring import f1_score, scores_by_group
from sdsearch.sampling.rollouts import Branch, RolloutLoop
from sdsearch.world import load_evidence
from storage.database.stage_rows import file_of
from storage.runs.screens import ScreenStore
from storage.storage import Storage

SOURCE = [
    *("iterations=2", "data.questions_per_iteration=3", "rollout.group_size=3", "rollout.max_searches=2"),
    *("rollout.max_new_tokens=40", "evaluation.num_questions=1", "evaluation.every=9", "model.torch_threads=1"),
    *("evaluation.modes=['greedy']", "distillation.enabled=false", "storage.keep_checkpoints=5"),
]
VARIANTS = """
set = ["distillation.strength.kind=gradient_share", "model.path=elsewhere"]
[variants.grpo]
set = ["distillation.enabled=false", "distillation.alpha=0.5"]
[variants.full]
title = "SD-Search"
set = ["distillation.alpha=0.9", "distillation.strength.share=0.5"]
[variants.advantage]
set = ["distillation.strength={kind='alpha'}", "distillation.form=advantage", "distillation.alpha=0.9"]
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    train_plain(load_settings("tiny", SOURCE), "source", folder, SilentReporter())
    (folder / "variants.toml").write_text(VARIANTS, encoding="utf-8")
    return folder


@pytest.fixture
def storage(workspace: Path) -> Storage:
    return open_storage(workspace)


def planned(storage: Storage, folder: Path, **changes: Any) -> ScreenPlan:
    arguments: dict[str, Any] = {"iterations": "1:2", "num_groups": 2, "num_draws": 2, "seed": 0} | changes
    return plan_screen(storage.ledger.get_run("source"), str(folder / "variants.toml"), **arguments)


def groups_of(storage: Storage, iteration: int) -> tuple[list[Group], list[Score]]:
    records = [storage.ledger.done(StageKey(run="source", iteration=iteration, stage=s)) for s in ("sample", "score")]
    sampled, scored = (record for record in records if record is not None)
    read = storage.artifacts.read_records
    return read(file_of(sampled, "groups"), Group), read(file_of(scored, "scores"), Score)


@pytest.mark.long
def test_turns_are_worth_what_draws_one_by_one_say(workspace: Path, storage: Storage) -> None:
    plan = planned(storage, workspace)
    results = screen(plan, storage, None, lambda line: None)
    store = ScreenStore(storage.workspace, plan.name)
    turns = store.find("turns", ScreenedTurn)
    assert turns
    assert results.num_turns == len(turns) == sum(map(len, searched(storage, plan).values()))
    assert any(turn.counterfactual for turn in turns)
    with open_runtime(stored_settings(plan.source), "source", storage, SilentReporter()) as live:
        for turn in turns[:3]:
            groups, _ = groups_of(storage, turn.iteration)
            (group,) = (group for group in groups if group.id == turn.group_id)
            (rollout,) = (rollout for rollout in group.rollouts if rollout.id == turn.rollout_id)
            loop = live.rollout_loop(turn.iteration - 1)
            for number, value in ((turn.turn, turn.value_before), (turn.turn + 1, turn.value_after)):
                # Siblings that wrote the same share the draws of the first of them.
                seen = rollout.token_ids[: rollout.num_tokens_before(number)]
                first = next(r for r in group.rollouts if r.token_ids[: len(seen)] == seen and number in points_of(r))
                drawn = [
                    loop.branch_off([Branch(group, first, number, draw)], seed=0, temperature=1.0)[0]
                    for draw in range(2)
                ]
                assert all(each.turns[:number] == rollout.turns[:number] for each in drawn)
                assert value == pytest.approx(fmean(f1_score(d.answer, group.question.golden_answers) for d in drawn))


@pytest.mark.long
def test_a_greedy_rollout_that_is_sampled_anew_is_the_same(workspace: Path, storage: Storage) -> None:
    settings = stored_settings(storage.ledger.get_run("source"))
    with open_runtime(settings, "source", storage, SilentReporter()) as live:
        loop = live.rollout_loop(0)
        questions = [group.question for group in groups_of(storage, 1)[0]]
        greedy = {"run_seed": 0, "iteration": 1, "policy_version": 0, "group_size": 1, "temperature": 0.0}
        groups = loop.roll_out(questions, **greedy)  # type: ignore[arg-type]
        pairs = [(group, group.rollouts[0]) for group in groups]
        branches = [Branch(g, r, turn, 0) for g, r in pairs for turn in range(len(r.turns))]
        again = loop.branch_off(branches, seed=3, temperature=0.0)
    assert len(branches) > len(groups)
    for branch, rollout in zip(branches, again, strict=True):
        assert rollout.token_ids == branch.rollout.token_ids
        assert [turn.action for turn in rollout.turns] == [turn.action for turn in branch.rollout.turns]


def searched(storage: Storage, plan: ScreenPlan) -> dict[str, list[int]]:
    """The turns that searched, of the groups that a screening takes."""
    chosen = [choose_groups(*groups_of(storage, number), plan.num_groups, plan.seed) for number in (1, 2)]
    return {
        rollout.id: [n for n, turn in enumerate(rollout.turns) if turn.searched_query is not None]
        for of_iteration in chosen
        for group, _ in of_iteration
        for rollout in group.rollouts
    }


@pytest.mark.long
def test_credit_and_hits_are_those_of_the_tables(workspace: Path, storage: Storage) -> None:
    plan = planned(storage, workspace)
    results = screen(plan, storage, None, lambda line: None)
    store, evidence = ScreenStore(storage.workspace, plan.name), load_evidence("train")
    turns, credit = store.find("turns", ScreenedTurn), store.find("credit", TurnCredit)
    assert turns
    assert credit
    assert results.hit_means == EVIDENCE
    assert [each.variant for each in credit] == [name for name in ("grpo", "full", "advantage") for _ in turns]
    advantage = {
        row["rollout_id"]: row["advantage"] for row in storage.database.query("SELECT * FROM rollouts").to_pylist()
    }
    searches = storage.database.query("SELECT * FROM searches WHERE run = 'source'").to_pylist()
    found = {(row["rollout_id"], row["turn"]): set(row["passage_ids"]) for row in searches}
    of = {name: [each.credit for each in credit if each.variant == name] for name in ("grpo", "full", "advantage")}
    for number, turn in enumerate(turns):
        facts = evidence[turn.question_key]
        assert turn.hit == any(found[turn.rollout_id, turn.turn] & fact for fact in facts)
        own = advantage[turn.rollout_id]
        assert of["grpo"][number] == own
        assert of["advantage"][number] == pytest.approx(own + 0.9 * abs(own) * of["full"][number])
    assert any(of["full"]), "the teacher says something"
    assert results.baseline == "grpo"


@pytest.mark.long
def test_a_screening_that_was_stopped_goes_on_and_says_the_same(
    workspace: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(storage, workspace, seed=7)
    real, calls = RolloutLoop.branch_off, []

    def stops(self: RolloutLoop, branches: Any, **options: Any) -> Any:
        calls.append(len(branches))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, branches, **options)

    monkeypatch.setattr(RolloutLoop, "branch_off", stops)
    with pytest.raises(KeyboardInterrupt):
        screen(plan, storage, None, lambda line: None)
    store = ScreenStore(storage.workspace, plan.name)
    kept = store.find("draws-00001", DrawnF1)
    assert kept
    assert store.find("draws-00002", DrawnF1) is None
    results = screen(plan, storage, None, lambda line: None)
    assert len(calls) == 3, "iteration 1 is not drawn again"
    monkeypatch.setattr(RolloutLoop, "branch_off", None)
    assert screen(plan, storage, None, lambda line: None) == results, "nothing is drawn again"
    for path in store.folder.glob("draws-*"):
        path.unlink()
    monkeypatch.setattr(RolloutLoop, "branch_off", real)
    assert screen(plan, storage, None, lambda line: None) == results, "the same seeds, the same draws"


@pytest.mark.long
def test_the_command_prints_tables_and_json(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["screen", "source", "--variants", str(workspace / "variants.toml"), "--workspace", str(workspace)]
    options = ["--iterations", "1:2", "--groups", "2", "--resample", "2"]
    assert run_command([*words, *options]) == 0
    said = capsys.readouterr().out
    assert "turns that searched, of 4 groups" in said
    assert "AUC: credit against hits" in said
    assert run_command([*words, *options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["baseline"] == "grpo"
    assert {row["variant"] for row in results["rows"]} == {"grpo", "full", "advantage"}
    assert run_command([*words, "--iterations", "1:2", "--groups", "2", "--resample", "0"]) == 0
    said = capsys.readouterr().out
    assert "no counterfactual credit: --resample N draws each turn anew" in said
    assert "counterfactual credit," not in said


@pytest.mark.long
def test_ctrl_c_names_the_same_screening(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other groups, draws or another seed would be another screening, and nothing of this one would be taken."""

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.screen.work.screen", interrupted)
    options = f"--variants {workspace / 'variants.toml'} --iterations 1:2 --groups 3 --resample 2 --seed 5"
    assert run_command(["screen", "source", *options.split(), "--workspace", str(workspace)]) == 130
    assert f"continue with: sdsearch screen source {options} --workspace {workspace}" in capsys.readouterr().out


def made_turn(question: int, turn: int, hit: bool, worth: float) -> ScreenedTurn:
    return ScreenedTurn(
        iteration=1,
        group_id=f"g{question}",
        question_key=f"q{question}",
        rollout_id=f"r{question}",
        turn=turn,
        query="a query",
        hit=hit,
        value_before=0.2,
        value_after=0.2 + worth,
    )


def credits_of(name: str, turns: list[ScreenedTurn], values: list[float]) -> list[TurnCredit]:
    return [
        TurnCredit(variant=name, rollout_id=turn.rollout_id, turn=turn.turn, credit=value)
        for turn, value in zip(turns, values, strict=True)
    ]


def test_a_ranking_that_is_known() -> None:
    worth = [0.5, -0.3, 0.0, 0.2, -0.1, 0.0, 0.4, -0.2]
    turns = [made_turn(n // 2, n % 2, hit=value > 0, worth=value) for n, value in enumerate(worth)]
    credit = {
        "flat": credits_of("flat", turns, [0.3] * 8),
        "knows": credits_of("knows", turns, worth),
        "wrong": credits_of("wrong", turns, [-value for value in worth]),
    }
    rows = {(r.truth, r.statistic, r.variant): r for r in compare(turns, credit, "flat", seed=0)}
    assert [rows["hit", "auc", name].value for name in credit] == [0.5, 1.0, 0.0]
    assert [rows["counterfactual", "auc", name].value for name in credit] == [0.5, 1.0, 0.0]
    # A flat credit has no ranks, and nothing can be compared with it.
    assert ("counterfactual", "spearman", "knows") not in rows
    ranked = {(r.statistic, r.variant): r for r in compare(turns, credit, "wrong", seed=0)}
    assert ranked["spearman", "knows"].value == pytest.approx(1.0)
    assert ranked["spearman", "knows"].difference == pytest.approx(2.0)


@pytest.mark.long
def test_what_cannot_be_screened_is_one_line(
    workspace: Path, storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(text: str, *options: str, run: str = "source") -> str:
        file = tmp_path / "v.toml"
        file.write_text(text, encoding="utf-8")
        words = ["screen", run, "--variants", str(file), "--workspace", str(workspace), *options]
        assert run_command(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no variants; expected a table [variants.NAME]" in refusal("x = 1")
    assert "variants.a: set" in refusal('[variants.a]\nset = "hindsight.labels=none"')
    assert "variants.a: run 'source'" in refusal('[variants.a]\nset = ["hindsight.lables=none"]')
    assert "variants.a: --set grpo.clip_low: a replay takes" in refusal('[variants.a]\nset = ["grpo.clip_low=0.1"]')
    assert "no rollouts of iterations 3" in refusal("[variants.a]", "--iterations", "2:3")
    assert "nobody" in refusal("[variants.a]", run="nobody")
    with pytest.raises(UserError, match="no variants file 'nothing'"):
        read_variants("nothing")


@pytest.mark.long
def test_mixed_groups_come_first(storage: Storage) -> None:
    groups, scores = groups_of(storage, 1)
    mixed = groups[-1]
    outcomes = [s.model_copy(update={"f1": 1.0 if s.rollout_id == mixed.rollouts[0].id else 0.0}) for s in scores]
    for seed in range(4):
        chosen = choose_groups(groups, outcomes, 2, seed)
        assert chosen[0][0] == mixed
        assert [s for _, own in chosen for s in own] == [s for g, _ in chosen for s in scores_by_group(outcomes)[g.id]]
    assert len({choose_groups(groups, outcomes, 2, seed)[1][0].id for seed in range(8)}) > 1


def test_screening_is_compared_with_what_training_made_of_the_variants() -> None:
    turns = [made_turn(n // 2, n % 2, hit=n % 3 == 0, worth=(n % 5 - 2) / 5) for n in range(12)]
    credit = {
        "base": credits_of("base", turns, [(-1.0) ** n for n in range(12)]),
        "good": credits_of("good", turns, [float(turn.counterfactual or 0) for turn in turns]),
        "bad": credits_of("bad", turns, [-float(turn.counterfactual or 0) for turn in turns]),
    }
    rows = compare(turns, credit, "base", seed=0)
    variants = {name: Variant() for name in ("base", "good", "bad", "not_screened")}
    study = Study(name="trained", base="tiny", baseline="base", seeds=(0,), variants=variants)
    em = {"base": 0.5, "good": 0.6, "bad": 0.4, "not_screened": 0.9}
    (found,) = (p for p in predictions(rows, study, figures_of(em)) if p.statistic == "spearman")
    assert (found.figure, found.num_variants) == ("greedy EM after 12", 3)
    assert found.correlation == pytest.approx(1.0)
    turned = figures_of({"base": 0.5, "good": 0.4, "bad": 0.6, "not_screened": 0.9})
    (found,) = (p for p in predictions(rows, study, turned) if p.statistic == "spearman")
    assert found.correlation == pytest.approx(-1.0)


def figures_of(em: dict[str, float]) -> StudyFigures:
    """The greedy EM after 12 updates of trained variants, as a primary figure."""
    rows = tuple(
        FigureRow(
            variant=variant,
            mode="greedy",
            figure="em",
            updates=12,
            is_primary=True,
            num_seeds=1,
            num_reached=None,
            value=Estimate(mean=value, std=None),
            difference=None,
        )
        for variant, value in em.items()
    )
    return StudyFigures(
        study="trained", dataset="world", split="dev", num_questions=9, updates=(12,), rows=rows, runs=(), costs=()
    )
