"""Plugins that cannot be used, told in one line; and what of a person's files is hashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.console.errors import UserError
from flows.evaluation.stage import EVALUATE
from flows.plugins.check import plugin_sources
from flows.run.stage_inputs import code_hash, input_hash, stage_sources
from flows.settings.load import load_settings
from flows.training.stages.hindsight import HINDSIGHT
from flows.training.stages.score import SCORE
from flows.training.stages.teacher import TEACHER
from flows.training.stages.update import UPDATE
from schemas.plugins import KINDS, import_path_of
from schemas.settings.root import Settings
from sdsearch.plugins import load_plugin
from sdsearch.plugins.loading import base_of

WORKS = "from sdsearch.credit.rewards import Reward\n"
NUMBER = """class Price(Reward):
    per_search: float = 0.5
    def __call__(self, rollout, golden, scores):
        return {}
"""


def settings_with(name: str, *overrides: str) -> Settings:
    return load_settings("tiny", [f"reward.name={name}", *overrides])


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "given", "told"),
    [
        (WORKS, "reward.name=anwser", "reward.name: no reward 'anwser'; did you mean 'answer'?"),
        (WORKS, "reward.name=my.r:", "reward.name: no reward 'my.r:'; "),
        (WORKS, "reward.name=elsewhere:Price", "reward.name 'elsewhere:Price': no module 'elsewhere' in "),
        (WORKS, "reward.name=bad_plugin.below:Price", "no module 'bad_plugin.below' in "),
        (f"{WORKS}{NUMBER}", "reward.name=bad_plugin:Prise", "has no 'Prise'; did you mean 'Price'?"),
        (f"{WORKS}Price = 3", "reward.name=bad_plugin:Price", "got int 3; expected a class derived from"),
        (f"{WORKS}class Price: pass", "reward.name=bad_plugin:Price", "got the class Price; expected a class derived"),
        (f"{WORKS}class Price(Reward): pass", "reward.name=bad_plugin:Price", "Reward that has __call__"),
        ("def Price(rollout): pass", "reward.name=bad_plugin:Price", "got Price(rollout); expected a class derived"),
        ("import nowhere", "reward.name=bad_plugin:Price", "failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("def Price(:", "reward.name=bad_plugin:Price", "cannot be read as Python (invalid syntax"),
        ("1 / 0", "reward.name=bad_plugin:Price", "failed: ZeroDivisionError: division by zero; repair it"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(mine: Path, source: str, given: str, told: str) -> None:
    write(mine / "bad_plugin.py", source)
    with pytest.raises(UserError) as refused:
        load_settings("tiny", [given])
    assert told in str(refused.value)
    assert str(refused.value).startswith("tiny with --set: reward.name")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("per_serch=1", "unknown setting 'reward.options.per_serch'; did you mean 'reward.options.per_search'?"),
        ("per_search=much", "reward.options.per_search: expected number, got 'much'"),
    ],
)
def test_options_are_checked_by_the_plugins_model(mine: Path, given: str, told: str) -> None:
    write(mine / "priced.py", f"{WORKS}{NUMBER}")
    with pytest.raises(UserError) as refused:
        settings_with("priced:Price", f"reward.options.{given}")
    assert told in str(refused.value)


def test_options_are_written_out_with_their_defaults(mine: Path) -> None:
    write(mine / "priced.py", f"{WORKS}{NUMBER}")
    plain, other = settings_with("priced:Price"), settings_with("priced:Price", "reward.options.per_search=2")
    assert (plain.reward.options, other.reward.options) == ({"per_search": 0.5}, {"per_search": 2})
    assert settings_with("priced:Price", "reward.options.per_search=0.5").content_hash() == plain.content_hash()


def test_a_function_has_no_options_and_the_shipped_reward_its_own(mine: Path) -> None:
    write(mine / "plain.py", "def one(rollout, golden_answers, scores):\n    return {'one': 1.0}\n")
    assert settings_with("plain:one").reward.options == {}
    with pytest.raises(UserError, match=r"reward\.options: 'plain:one' is a function and has no settings"):
        settings_with("plain:one", "reward.options.x=1")
    with pytest.raises(UserError, match=r"reward\.options are a plugin's, and reward 'answer' has reward\.metric"):
        load_settings("tiny", ["reward.options.metric=em"])


def test_another_plugin_does_not_inherit_the_options_of_the_former_one(mine: Path) -> None:
    write(mine / "priced.py", f"{WORKS}{NUMBER}")
    write(mine / "low.toml", 'base = "tiny"\n[reward]\nname = "priced:Price"\noptions = { per_search = 1.0 }\n')
    write(mine / "high.toml", 'base = "low.toml"\n[reward]\nname = "answer"\n')
    write(mine / "same.toml", 'base = "low.toml"\n[reward]\nname = "priced:Price"\n')
    assert load_settings("high.toml").reward.options == {}
    assert load_settings("same.toml").reward.options == {"per_search": 1.0}


def test_the_sources_are_the_file_and_what_it_imports_from_beside_it(mine: Path) -> None:
    write(mine / "alone.py", f"import json, numpy\nimport helper\n{WORKS}{NUMBER}")
    write(mine / "helper.py", "def f():\n    import deeper.still\n")
    write(mine / "deeper/__init__.py", "")
    write(mine / "deeper/still.py", "from . import beside\n")
    write(mine / "deeper/beside.py", "")
    write(mine / "deeper/unused.py", "")
    write(mine / "unused.py", "")
    found = plugin_sources(settings_with("alone:Price"))["reward.name"]
    assert list(found) == ["alone.py", "deeper/__init__.py", "deeper/beside.py", "deeper/still.py", "helper.py"]
    assert plugin_sources(settings_with("alone:Price"), "score").keys() == {"reward.name"}
    assert plugin_sources(settings_with("alone:Price"), "sample") == {}
    assert plugin_sources(load_settings("tiny")) == {}


def test_a_change_of_any_of_them_is_seen_and_imported(mine: Path) -> None:
    write(mine / "pack/rewards/__init__.py", "")
    write(mine / "pack/rewards/mine.py", f"from ..numbers import N\n{WORKS}{NUMBER.replace('0.5', 'N')}")
    write(mine / "pack/numbers.py", "N = 1.0\n")
    before = settings_with("pack.rewards.mine:Price")
    hashes = plugin_sources(before)["reward.name"]
    assert list(hashes) == ["pack/numbers.py", "pack/rewards/__init__.py", "pack/rewards/mine.py"]
    write(mine / "pack/numbers.py", "N = 2.0\n")
    after = settings_with("pack.rewards.mine:Price")
    assert (before.reward.options, after.reward.options) == ({"per_search": 1.0}, {"per_search": 2.0})
    changed = {name for name, sha256 in plugin_sources(after)["reward.name"].items() if hashes[name] != sha256}
    assert changed == {"pack/numbers.py"}


def test_the_same_name_in_another_folder_is_another_plugin(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1.0, 2.0):
        write(mine / f"at{number}/here.py", f"{WORKS}{NUMBER.replace('0.5', str(number))}")
        monkeypatch.chdir(mine / f"at{number}")
        assert settings_with("here:Price").reward.options == {"per_search": number}


def test_a_file_of_the_folder_replaces_no_library(mine: Path) -> None:
    write(mine / "json.py", "raise RuntimeError('imported in place of the library')\n")
    write(mine / "priced.py", f"import json\njson.dumps({{}})\n{WORKS}{NUMBER}")
    assert settings_with("priced:Price").reward.options == {"per_search": 0.5}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS.values() for name in kind.shipped])
def test_what_is_shipped_comes_through_the_same_door(kind: object, name: str) -> None:
    known = KINDS[kind.name]  # type: ignore[attr-defined]
    plugin = load_plugin(known.name, name)
    assert plugin.is_shipped
    assert plugin.path == import_path_of(known, name)
    assert not isinstance(plugin.target, type) or issubclass(plugin.target, base_of(known))
    assert plugin.target.__doc__


WEIGHTED = """from pydantic import Field
from sdsearch.credit.block_variants import BlockVariant
from sdsearch.credit.divergence import Divergence
from sdsearch.credit.rewards import Reward
class Mine(Reward):
    weight: float = 1.0
    def __call__(self, rollout, golden_answers, scores): return {"f1": scores.f1 * self.weight}
class Far(Divergence):
    weight: float = 1.0
    def __call__(self, teacher_QC, student_QC): return self.weight * (teacher_QC - student_QC).abs().sum(dim=1)
class Told(BlockVariant):
    weight: float = 1.0
    def __call__(self, member): return member.queries
"""
CHOSEN = ("reward.name=weighted:Mine", "distillation.divergence=weighted:Far", "hindsight.masking=weighted:Told")


def test_options_and_sources_are_inputs_of_the_stages_that_use_them(mine: Path) -> None:
    write(mine / "weighted.py", WEIGHTED)

    def hashes(*overrides: str) -> dict[str, str]:
        settings = load_settings("tiny", [*CHOSEN, *overrides])
        return {
            stage.name: input_hash(settings, stage, [], code_hash(stage_sources(settings, stage)))
            for stage in (SCORE, HINDSIGHT, TEACHER, UPDATE, EVALUATE)
        }

    def changed(*overrides: str) -> set[str]:
        return {name for name, value in hashes(*overrides).items() if value != before[name]}

    before = hashes()
    assert changed() == set()
    assert changed("reward.options.weight=2") == {"score"}
    assert changed("hindsight.masking_options.weight=2") == {"score", "hindsight"}, "hindsight decides the outcome too"
    assert changed("distillation.divergence_options.weight=2") == {"teacher", "update"}
    write(mine / "weighted.py", f"{WEIGHTED}# a remark\n")
    assert changed() == {"score", "hindsight", "teacher", "update"}
