"""A reward in one file of a person's own: stored with its parts, shown, and part of what a run is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import flows.training.stages.update
from flows.console.errors import UserError
from flows.inspect.browse import print_run
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.settings.root import Settings
from storage.workspace import Workspace
from tests.support.plugging import write_example

QUICK = ["evaluation.num_questions=2", "data.questions_per_iteration=2", "model.torch_threads=1", "iterations=2"]


def settings_of(config: Path, *overrides: str) -> Settings:
    return load_settings(str(config), [*QUICK, *overrides])


def train(folder: Path, run: str, settings: Settings | None) -> None:
    train_plain(settings, run, folder / "workspace", SilentReporter(), resume=settings is None)


def query(folder: Path, sql: str) -> list[dict]:
    return open_storage(folder / "workspace").database.query(sql).to_pylist()


def test_the_parts_are_stored_and_shown(mine: Path) -> None:
    train(mine, "first", settings_of(write_example("my_reward.py", mine)))
    per_rollout = query(
        mine,
        "SELECT r.iteration, r.rollout_id, r.reward, r.f1, len(r.queries) AS searches, "
        "map_from_entries(list((p.part, p.value))) AS parts "
        "FROM rollouts AS r JOIN reward_parts AS p USING (run, iteration, rollout_id) GROUP BY ALL",
    )
    assert len(per_rollout) == 2 * 2 * 4
    for row in per_rollout:
        parts = dict(row["parts"])
        assert parts == {"f1": row["f1"], "searches": pytest.approx(-0.1 * max(0, row["searches"] - 1))}
        assert row["reward"] == pytest.approx(sum(parts.values()))
    assert any(row["searches"] > 1 for row in per_rollout), "the price was paid somewhere"
    means = query(mine, "SELECT iteration, part, num_rollouts FROM v_reward_parts ORDER BY iteration, part")
    assert means == [
        {"iteration": iteration, "part": part, "num_rollouts": 8} for iteration in (1, 2) for part in ("f1", "searches")
    ]
    shown = io.StringIO()
    print_run(Workspace.open(mine / "workspace"), "first", Console(file=shown, width=160))
    assert "reward: mean of each part" in shown.getvalue()
    assert "reward.options.price" in shown.getvalue()


def test_the_shipped_reward_has_its_parts_too(mine: Path) -> None:
    config = mine / "bonus.toml"
    config.write_text('base = "tiny"\n[reward]\nformat_bonus = 0.25\n', encoding="utf-8")
    train(mine, "first", settings_of(config, "iterations=1", "distillation.enabled=false"))
    (row,) = query(
        mine,
        "SELECT max(r.valid_format AND p.value = 0.25) AS given, bool_and(p.value IN (0, 0.25)) AS bonus "
        "FROM rollouts AS r JOIN reward_parts AS p USING (run, iteration, rollout_id) WHERE p.part = 'format'",
    )
    assert row == {"given": True, "bonus": True}


def test_a_run_does_not_go_on_with_a_changed_reward(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_example("my_reward.py", mine)
    with monkeypatch.context() as patch:
        patch.setattr(flows.training.stages.update, "update_policy", _fails)
        with pytest.raises(RuntimeError, match="drawn for the test"):
            train(mine, "first", settings_of(config))
    source = (mine / "my_reward.py").read_text(encoding="utf-8")
    (mine / "my_reward.py").write_text(source.replace("- 1)", "- 2)"), encoding="utf-8")
    for settings in (None, settings_of(config)):
        with pytest.raises(UserError, match=r"the plugin of reward\.name has changed \(my_reward\.py is another\)"):
            train(mine, "first", settings)
    (mine / "my_reward.py").unlink()
    with pytest.raises(UserError, match=r"reward\.name 'my_reward:Brevity': no module 'my_reward' in "):
        train(mine, "first", None)
    (mine / "my_reward.py").write_text(source, encoding="utf-8")
    train(mine, "first", None)
    stages = query(mine, "SELECT stage, count(*) AS n FROM stages WHERE status = 'done' GROUP BY stage")
    assert {row["stage"]: row["n"] for row in stages}["score"] == 2


def test_a_new_run_takes_the_reward_as_it_is_now(mine: Path) -> None:
    config = write_example("my_reward.py", mine)
    train(mine, "before", settings_of(config, "iterations=1"))
    source = (mine / "my_reward.py").read_text(encoding="utf-8")
    (mine / "my_reward.py").write_text(source.replace('"searches"', '"queries"'), encoding="utf-8")
    train(mine, "after", settings_of(config, "iterations=1"))
    rows = query(mine, "SELECT DISTINCT run, part FROM reward_parts ORDER BY run, part")
    assert [tuple(row.values()) for row in rows] == [
        ("after", "f1"),
        ("after", "queries"),
        ("before", "f1"),
        ("before", "searches"),
    ]


def _fails(*args: object, **kwargs: object) -> object:
    raise RuntimeError("drawn for the test")
