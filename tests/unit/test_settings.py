"""Settings files and what the command line changes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import UserError
from flows.settings import load_settings, new_run_name, parse_value, shipped_configs
from schemas.config import HFEncoderSettings
from storage.workspace import validate_run_name


def problem(config: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(config, overrides)
    return str(caught.value)


def test_the_shipped_files_are_the_documented_ones() -> None:
    assert {"quickstart", "quickstart_grpo", "tiny", "paper_3b", "paper_7b"} <= set(shipped_configs())


@pytest.mark.parametrize("config", shipped_configs())
def test_a_shipped_file_parses(config: str) -> None:
    assert load_settings(config).model.path


def test_the_baseline_differs_from_the_method_in_distillation_alone() -> None:
    method, baseline = load_settings("quickstart"), load_settings("quickstart_grpo")
    assert not baseline.distillation.enabled
    assert baseline.model_copy(update={"distillation": method.distillation}) == method


def test_the_paper_files_hold_the_papers_numbers() -> None:
    settings = load_settings("paper_3b")
    assert (settings.rollout.group_size, settings.iterations, settings.distillation.top_k) == (5, 200, 50)
    assert [settings.alpha_at(iteration) for iteration in (1, 50, 51, 200)] == [0.0, 0.0, 1e-3, 1e-3]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('iterations = 7\n[model]\npath = "x"\n', encoding="utf-8")
    assert load_settings(str(path)).iterations == 7


def test_overrides_are_toml_values_and_bare_words() -> None:
    settings = load_settings(
        "tiny",
        [
            "update.learning_rate=3e-5",
            "model.path=/some/where",
            'data.dataset="quoted name"',
            "evaluation.modes=['sampled']",
            "distillation.enabled=false",
            "retrieval.encoder.kind=hf",
            "iterations=5",
            "iterations=6",
        ],
    )
    assert settings.update.learning_rate == 3e-5
    assert settings.model.path == "/some/where"
    assert settings.data.dataset == "quoted name"
    assert settings.evaluation.modes == ("sampled",)
    assert settings.distillation.enabled is False
    assert isinstance(settings.retrieval.encoder, HFEncoderSettings)
    assert settings.iterations == 6


def test_an_override_leaves_the_rest_alone() -> None:
    changed = load_settings("tiny", ["update.learning_rate=3e-5"])
    plain = load_settings("tiny")
    assert changed.model_copy(update={"update": plain.update}) == plain


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("a b", "a b"), ("true", True), ("1\nx = 2", "1\nx = 2")])
def test_parse_value(text: str, value: object) -> None:
    assert parse_value(text, "here") == value


def test_an_unknown_file_names_the_nearest() -> None:
    message = problem("quikstart")
    assert "no settings file 'quikstart'" in message
    assert "did you mean 'quickstart'?" in message
    assert "paper_3b" in message


def test_a_missing_path_lists_what_ships() -> None:
    assert "tiny" in problem("/no/such/folder/zzz.toml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in problem(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"), [(b"seed = = 1", "line 1"), (b"seed = 0\nx = '\xff'", "not UTF-8"), (b"", "model")]
)
def test_a_broken_file_says_where(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = problem(str(path))
    assert str(path) in message
    assert said in message


def test_unknown_keys_get_the_nearest_name_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "typo.toml"
    path.write_text('itterations = 3\n[model]\npath = "x"\n[update]\nlearning_rat = 1\n', encoding="utf-8")
    lines = sorted(problem(str(path)).splitlines())
    assert len(lines) == 2
    assert "'itterations'" in lines[0]
    assert "did you mean 'iterations'?" in lines[0]
    assert "'update.learning_rat'" in lines[1]
    assert "did you mean 'learning_rate'?" in lines[1]


def test_wrong_types_one_line_each_with_what_was_got() -> None:
    lines = problem("tiny", "iterations=many", "update.betas=0.9", "rollout.group_size=1").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("tiny with --set: ") for line in lines)
    assert any("iterations" in line and "'many'" in line for line in lines)
    assert any("update.betas" in line and "0.9" in line for line in lines)
    assert any("rollout.group_size" in line and "got 1" in line for line in lines)


def test_an_impossible_combination_says_what_to_do() -> None:
    message = problem("tiny", "distillation.divergence=mse", "distillation.tail=renormalise")
    assert "set tail = 'bucket'" in message


@pytest.mark.parametrize(
    "override", ["iterations", "=3", ".x=3", "a..b=3", "iterations.x=3", "evaluation.modes=['greedy'"]
)
def test_a_broken_override_is_named(override: str) -> None:
    message = problem("tiny", override)
    assert message.startswith(f"--set {override}")
    assert "\n" not in message


@pytest.mark.parametrize("config", ["quickstart", "/some/where/My Settings (2).toml", "…", ".hidden.toml"])
def test_a_made_name_can_be_a_run(config: str) -> None:
    assert validate_run_name(new_run_name(config))
