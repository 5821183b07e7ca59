"""Settings that belong to a model travel with its folder."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from flows.app import run_command
from flows.console.errors import UserError
from flows.evaluation.plan import Request, plan_model
from flows.run.progress import RichReporter
from flows.settings.layers import file_layers, merge
from flows.settings.load import load_settings, shipped_configs
from flows.settings.model_folder import BELONGS, MODEL_SETTINGS, brought_lines, exported, local_folder, model_notes
from schemas.settings.root import Settings
from schemas.settings.tree import setting_names

MINI = tomllib.loads((local_folder("mini") / MODEL_SETTINGS).read_text(encoding="utf-8"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that is called a model; what is read of it here is its settings alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\npath = "mini"\n', encoding="utf-8")
    return path


def brings(model: Path, text: str) -> None:
    (model / MODEL_SETTINGS).write_text(text, encoding="utf-8")


def problem(model: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_settings("tiny", [f"model.path={model}"])
    return str(caught.value)


def test_the_mini_policy_alone_has_the_settings_that_it_was_made_for(mine: Path) -> None:
    settings = load_settings(str(mine))
    assert settings.rollout.template == "compact"
    assert settings.update.learning_rate == 3e-4
    assert settings.distillation.warmup_iterations == 5
    quickstart = load_settings("quickstart")
    for section, values in MINI.items():
        for name, value in values.items():
            assert getattr(getattr(settings, section), name) == value, f"{section}.{name}"
            # The quickstart's distillation is stronger and ends, which a model's settings cannot say.
            if section != "distillation":
                assert getattr(getattr(quickstart, section), name) == value, f"quickstart: another {section}.{name}"
    assert settings.update.weight_decay == Settings.model_fields["update"].default.weight_decay


def test_the_mini_policy_named_by_set_is_the_same(mine: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.toml"
    bare.write_text("", encoding="utf-8")
    assert load_settings(str(bare), ["model.path=mini"]) == load_settings(str(mine))


def test_a_persons_own_values_go_first(mine: Path) -> None:
    with mine.open("a", encoding="utf-8") as file:
        file.write('[rollout]\ntemplate = "instruct"\n')
    settings = load_settings(str(mine), ["update.learning_rate=1e-5"])
    assert settings.rollout.template == "instruct"
    assert settings.update.learning_rate == 1e-5
    assert settings.rollout.max_new_tokens == 48, "what nobody named is the model's"


@pytest.mark.parametrize("config", shipped_configs())
def test_a_shipped_file_says_all_that_a_model_could_bring(config: str) -> None:
    values = merge(file_layers(config, shipped_configs()))
    assert load_settings(config) == Settings.model_validate_json(json.dumps(values), strict=True)


def test_what_belongs_to_a_model_are_settings() -> None:
    assert set(BELONGS) <= set(setting_names(Settings))
    assert not any(name.startswith(("model.", "storage.", "retrieval.", "sampling.")) for name in BELONGS)


def test_a_folder_of_ones_own_brings_its_settings(model: Path, mine: Path) -> None:
    brings(model, "[rollout]\nmax_new_tokens = 7\n")
    settings = load_settings(str(mine), [f"model.path={model}"])
    assert settings.rollout.max_new_tokens == 7
    assert settings.rollout.template == "instruct", "the mini policy's are not another model's"


@pytest.mark.parametrize("path", ["some/name", "", "~nobody/model", "\0", "x" * 5000])
def test_a_path_without_a_folder_brings_nothing(path: str, mine: Path) -> None:
    settings = load_settings(str(mine), [f"model.path={json.dumps(path)}"])
    assert settings.rollout == Settings.model_fields["rollout"].default


def test_a_file_in_the_current_folder_is_no_models(model: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brings(model, "[rollout]\nmax_new_tokens = 7\n")
    monkeypatch.chdir(model)
    assert load_settings(str(mine), ["model.path=''"]).rollout.max_new_tokens == 512


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rollout", "not TOML"),
        ("[model]\ntrust_remote_code = true", "'model.trust_remote_code' is no setting that a model may bring"),
        ('[retrieval]\nkind = "http"\nurls = ["http://x"]', "'retrieval.kind' is no setting"),
        ("[rollout]\ntemplat = 'compact'", "did you mean 'rollout.template'?"),
        ("rollout = 3", "'rollout' is no setting"),
        ("[rollout]\ntemplate = 'chatml'", "with {question} once in it, got 'chatml'"),
        ("[update]\nlearning_rate = nan", "update.learning_rate: expected a finite number > 0, got nan"),
        ("[update]\nlearning_rate = '1'", "update.learning_rate: expected number > 0, got '1'"),
        ("[distillation]\nalpha = 0", "distillation.alpha 0 leaves nothing to distil"),
        ("#" * 70_000, "70000 bytes, expected a few settings"),
    ],
)
def test_a_file_that_is_not_good_is_named(model: Path, text: str, said: str) -> None:
    brings(model, text)
    message = problem(model)
    assert message.startswith(f"{model / MODEL_SETTINGS}: ")
    assert said in message
    assert "\n" not in message


def test_what_training_exports_is_read_again(model: Path, mine: Path) -> None:
    trained = load_settings("tiny", ["rollout.temperature=0.8", "update.learning_rate=1e-5"])
    (model / MODEL_SETTINGS).write_bytes(exported(trained))
    settings = load_settings(str(mine), [f"model.path={model}"])
    for name in BELONGS:
        section, _, key = name.partition(".")
        assert getattr(getattr(settings, section), key) == getattr(getattr(trained, section), key), name


def test_plain_grpo_exports_nothing_of_distillation(model: Path, mine: Path) -> None:
    (model / MODEL_SETTINGS).write_bytes(
        exported(load_settings("tiny", ["distillation.enabled=false", "distillation.alpha=0"]))
    )
    settings = load_settings(str(mine), [f"model.path={model}"])
    assert settings.distillation == Settings.model_fields["distillation"].default


def test_the_doctor_says_what_the_model_brings(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "rollout.template=instruct", "--workspace", str(tmp_path / "workspace")]
    run_command(["doctor", str(mine), *arguments])
    printed = capsys.readouterr().out
    assert "as the model brings it: data.questions_per_iteration = 16" in printed
    assert 'otherwise than the model brings it: rollout.template = "instruct" (the model\'s: "compact")' in printed
    assert 'note: rollout.template is "instruct", model mini was made for "compact"' in printed


def test_what_does_not_belong_to_the_model_is_noted() -> None:
    assert model_notes(load_settings("tiny")) == []
    assert model_notes(load_settings("tiny", ["update.learning_rate=3e-5"])) == []
    (note,) = model_notes(load_settings("tiny", ["update.learning_rate=1e-6"]))
    assert note.startswith("update.learning_rate is 1e-06, model mini was made for 0.0003")
    printed = io.StringIO()
    console = Console(file=printed, width=160)
    RichReporter(None, console).run_started("r", load_settings("tiny", ["rollout.template=instruct"]), 1)
    assert 'note: rollout.template is "instruct", model mini was made for "compact"' in printed.getvalue()


def test_a_run_does_not_depend_on_the_file(model: Path) -> None:
    brings(model, "[rollout]\ntemplate = 'compact'\n")
    settings = load_settings("tiny", [f"model.path={model}"])
    brings(model, "broken")
    assert model_notes(settings) == []
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_an_evaluated_folder_brings_its_settings(model: Path, mine: Path) -> None:
    brings(model, "[rollout]\nmax_new_tokens = 7\n")
    plan = plan_model(str(model), str(mine), [], Request())
    assert plan.settings.model.path == str(model)
    assert plan.settings.rollout.max_new_tokens == 7


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    copied = shutil.copytree(local_folder("mini"), tmp_path / "copied")
    (copied / MODEL_SETTINGS).unlink()
    assert brought_lines(load_settings("tiny", [f"model.path={copied}"])) == []
