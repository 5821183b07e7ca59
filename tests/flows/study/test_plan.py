"""Study files: what ships, what a study trains, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from flows.console.errors import UserError
from flows.settings.load import load_settings, shipped_configs, shipped_studies
from flows.study.plan import PlannedRun, load_study, plan_runs
from schemas.plugins import KINDS
from schemas.settings.root import DistillationSettings, HindsightSettings, Settings
from storage.runs.studies import write_study
from storage.workspace import Workspace, validate_run_name

GOOD = """
name = "mine"
base = "tiny"
set = ["iterations=2"]
baseline = "grpo"
seeds = [3, 1]
[variants.grpo]
set = ["distillation.enabled=false"]
[variants.full]
title = "SD-Search"
"""
ABLATIONS = {
    "hindsight.masking": HindsightSettings,
    "hindsight.labels": HindsightSettings,
    "hindsight.members": HindsightSettings,
    "distillation.positions": DistillationSettings,
    "distillation.divergence": DistillationSettings,
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace")


def choices(name: str, section: type[BaseModel]) -> tuple[str, ...]:
    """Return the values that ship for a setting: of a closed choice, or of a kind of plugin."""
    shipped = {kind.setting: tuple(kind.shipped) for kind in KINDS.values()}
    return shipped.get(name) or get_args(section.model_fields[name.partition(".")[2]].annotation)


def planned(workspace: Workspace, tmp_path: Path, text: str) -> list[PlannedRun]:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return plan_runs(load_study(str(path), workspace))


def by_variant(workspace: Workspace, study: str) -> dict[str, Settings]:
    return {plan.variant: plan.settings for plan in plan_runs(load_study(study, workspace)) if plan.seed == 0}


def test_the_shipped_studies_are_no_settings_files() -> None:
    assert shipped_studies() == [
        *("study_ablations", "study_curves", "study_family", "study_mini", "study_paper", "study_quick"),
        *("study_quickstart", "study_reference", "study_strength"),
    ]
    assert not set(shipped_studies()) & set(shipped_configs())


@pytest.mark.parametrize("study", shipped_studies())
def test_a_shipped_study_gives_runs_that_can_be(workspace: Workspace, study: str) -> None:
    loaded = load_study(study, workspace)
    runs = plan_runs(loaded)
    assert loaded.name == study
    assert len({plan.run for plan in runs}) == len(runs) == len(loaded.variants) * len(loaded.seeds)
    assert all(validate_run_name(plan.run) == f"{study}-{plan.variant}-s{plan.seed}" for plan in runs)


def test_the_quick_study_compares_the_method_with_its_baseline(workspace: Workspace) -> None:
    variants = by_variant(workspace, "study_quick")
    method, baseline = variants["sd_search"], variants["grpo"]
    assert (method.iterations, method.evaluation.every, method.distillation.warmup_iterations) == (12, 4, 3)
    assert not baseline.distillation.enabled
    assert baseline.model_copy(update={"distillation": method.distillation}) == method


def test_the_quickstarts_study_is_reported_on_test_too(workspace: Workspace) -> None:
    variants = by_variant(workspace, "study_quickstart")
    assert variants["sd_search"].distillation == load_settings("quickstart").distillation
    assert (
        variants["grpo"].model_copy(update={"distillation": variants["sd_search"].distillation})
        == variants["sd_search"]
    )
    protocol = load_study("study_quickstart", workspace).protocol
    assert all(variants["grpo"].evaluates_after(updates) for updates in protocol.updates)
    assert (protocol.report_split, variants["grpo"].storage.keep_evaluated) == ("test", True)


@pytest.mark.parametrize("study", ["study_mini", "study_strength", "study_ablations", "study_family"])
def test_a_bench_study_can_be_reported_on_test(workspace: Workspace, study: str) -> None:
    loaded = load_study(study, workspace)
    plans, protocol = plan_runs(loaded), loaded.protocol
    assert len(loaded.seeds) == 5
    for plan in plans:
        settings = plan.settings
        assert (settings.evaluation.split, protocol.report_split) == ("dev", "test")
        assert all(settings.evaluates_after(updates) for updates in protocol.updates)
        assert max(protocol.updates) == settings.iterations
        assert settings.storage.keep_evaluated
        assert (settings.retrieval.num_passages, settings.model.torch_threads) == (1, 1)
    assert {chosen.updates for chosen in protocol.primary} <= {None, *protocol.updates}


def test_the_strengths_are_crossed_with_the_warm_ups(workspace: Workspace) -> None:
    variants = by_variant(workspace, "study_strength")
    assert not variants.pop("grpo").distillation.enabled
    found = {(v.distillation.strength.share, v.distillation.warmup_iterations) for v in variants.values()}  # type: ignore[union-attr]
    assert found == {(share, warmup) for share in (0.15, 0.5, 1.0, 2.0, 4.0) for warmup in (0, 6)}


def test_the_benchs_ablations_are_the_papers(workspace: Workspace) -> None:
    paper, bench = load_study("study_paper", workspace), load_study("study_ablations", workspace)
    assert bench.variants.items() > paper.variants.items()
    ours = bench.variants.keys() - paper.variants.keys()
    assert ours == {"labels_random", "mixed_only", "mixed_only_labels_shuffled"}


def test_each_of_the_family_differs_from_the_method_in_one_place(workspace: Workspace) -> None:
    study = load_study("study_family", workspace)
    mini = load_study("study_mini", workspace)
    assert {*study.set, *study.variants["sd_search"].set} == {*mini.set, *mini.variants["sd_search_falling"].set}
    variants = by_variant(workspace, "study_family")
    method = variants.pop("sd_search")
    seen = set()
    for name, settings in variants.items():
        dumped, own = settings.model_dump(), method.model_dump()
        changed = {f"{s}.{k}" for s in dumped if isinstance(own[s], dict) for k in own[s] if dumped[s][k] != own[s][k]}
        assert len(changed) == 1 or name in ("retries_off_policy", "retries_distillation", "information_gain"), name
        seen |= changed
    assert seen >= {
        *("distillation.form", "distillation.gate", "distillation.teacher", "distillation.enabled"),
        *("hindsight.contrast", "hindsight.memory", "hindsight.answer", "hindsight.own_query"),
        *("rollout.retries", "rollout.retries_use", "reward.turn"),
    }


def test_the_papers_study_has_every_row_once(workspace: Workspace) -> None:
    variants = by_variant(workspace, "study_paper")
    method = load_settings("paper_3b")
    assert variants.pop("sd_search") == method
    assert variants.pop("grpo") == load_settings("paper_3b", ["distillation.enabled=false"])
    rows = [
        load_settings("paper_3b", [f"{name}={value}"])
        for name, section in ABLATIONS.items()
        for value in choices(name, section)
    ]
    ours = load_settings("paper_3b", ["hindsight.labels=random"])
    ablations = [settings for settings in rows if settings not in (method, ours)]
    assert len(ablations) == 11
    assert sorted(settings.content_hash() for settings in variants.values()) == sorted(
        settings.content_hash() for settings in ablations
    )
    assert len(load_study("study_paper", workspace).seeds) == 5


def test_runs_are_what_their_settings_file_and_lines_say(workspace: Workspace, tmp_path: Path) -> None:
    runs = planned(workspace, tmp_path, GOOD)
    assert [plan.run for plan in runs] == ["mine-grpo-s3", "mine-grpo-s1", "mine-full-s3", "mine-full-s1"]
    assert all(load_settings(plan.config, plan.overrides) == plan.settings for plan in runs)
    assert [plan.settings.seed for plan in runs] == [3, 1, 3, 1]
    assert [plan.settings.distillation.enabled for plan in runs] == [False, False, True, True]
    assert all(plan.settings.iterations == 2 for plan in runs)


def test_a_base_is_found_beside_the_study(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(
        'iterations = 7\ndistillation.warmup_iterations = 0\n[model]\npath = "x"\n', encoding="utf-8"
    )
    (tmp_path / "study.toml").write_text(
        GOOD.replace('"tiny"', '"own.toml"').replace("iterations=2", "data.shuffle_seed=1"), encoding="utf-8"
    )
    study = load_study(str(tmp_path / "study.toml"), workspace)
    monkeypatch.chdir("/")
    assert plan_runs(study)[0].settings.iterations == 7


def test_a_study_of_the_workspace_is_found_by_its_name(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(GOOD, encoding="utf-8")
    study = load_study(str(tmp_path / "study.toml"), workspace)
    write_study(workspace, study)
    assert load_study("mine", workspace) == study


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds", "seds", r"unknown setting 'seds'.*did you mean 'seeds'"),
        ("[3, 1]", "[3, 3]", "seeds has a number twice"),
        ("[3, 1]", "[-1]", r"seeds.*-1"),
        ("[3, 1]", "[]", "seeds"),
        ("[3, 1]", "3", r"seeds.*3"),
        ('"grpo"\n', '"gpro"\n', "baseline 'gpro' is none of the variants; did you mean 'grpo'"),
        ("[variants.full]", '["variants"."f/l"]', "variant 'f/l' cannot be used"),
        ('name = "mine"', 'name = "../mine"', r"name: '\.\./mine' cannot be used"),
        ('name = "mine"', f'name = "{"x" * 73}"', "cannot be named so.*shorten the study's name or 'grpo'"),
        ("title", "titel", r"variants\.full: unknown setting 'titel'.*'title'"),
        ('title = "SD-Search"', "title = 3", r"variants\.full: title.*3"),
        ('base = "tiny"', 'base = "tinny"', "study mine: base: no settings file.*did you mean 'tiny'"),
        (
            "distillation.enabled=false",
            "distillation.enabeld=false",
            r"variants\.grpo\.set: unknown setting 'distillation.enabeld'.*enabled'",
        ),
        ('"iterations=2"', '"itterations=2"', r"mine: set: .*'itterations'.*'iterations'"),
        ('"iterations=2"', '"seed=2"', "set: 'seed' is the study's: list it in seeds"),
        ("distillation.enabled=false", "seed=4", r"variants\.grpo\.set: 'seed' is the study's"),
        ('title = "SD-Search"', 'set = ["distillation.enabled=false"]', "has the same settings as 'grpo'"),
        (
            'base = "tiny"',
            'base = "paper_3b"',
            r"variants\.full: trains exactly as 'grpo' does, since distillation\.enabled cannot act "
            r"\(.*distillation\.warmup_iterations \(50\) is not below iterations \(2\).*: lower it",
        ),
        (
            'title = "SD-Search"',
            'set = ["distillation.enabled=false", "hindsight.labels=none"]',
            r"variants\.full: trains exactly as 'grpo' does, since hindsight\.labels cannot act "
            r"\(hindsight\.labels has no effect: distillation\.enabled is false",
        ),
        ('title = "SD-Search"', 'set = ["evaluation.seed=3"]', r"variants\.full: is evaluated otherwise"),
        ("[variants.grpo]", "[variants.grpo", "not TOML"),
    ],
)
def test_a_wrong_study_is_explained(workspace: Workspace, tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=said) as caught:
        planned(workspace, tmp_path, GOOD.replace(old, new, 1))
    places = (str(tmp_path / "study.toml"), "study mine: ")
    assert all(line.startswith(places) for line in str(caught.value).splitlines())


def test_an_unknown_study_names_the_nearest(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no study file 'study_quik': did you mean 'study_quick'"):
        load_study("study_quik", workspace)
    with pytest.raises(UserError, match="no study file"):
        load_study("../../etc", workspace)
