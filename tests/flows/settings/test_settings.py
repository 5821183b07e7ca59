"""Settings files and what the command line changes in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.console.errors import UserError
from flows.inspect.schema import settings_reference
from flows.settings.load import load_settings, new_run_name, shipped_configs
from schemas.commands import parse_value
from schemas.settings.method import (
    DistillationSettings,
    GrpoSettings,
    HindsightSettings,
    RewardSettings,
    UpdateSettings,
)
from schemas.settings.retrieval import HFEncoderSettings
from schemas.settings.root import Settings
from schemas.settings.tree import setting_names
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
            'data.questions="quoted name"',
            "evaluation.modes=['sampled']",
            "distillation.enabled=false",
            "retrieval.encoder.kind=hf",
            "iterations=5",
            "iterations=6",
        ],
    )
    assert settings.update.learning_rate == 3e-5
    assert settings.model.path == "/some/where"
    assert settings.data.questions == "quoted name"
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
    assert "did you mean 'update.learning_rate'?" in lines[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["retrieval.encoder.kind=hf", "retrieval.encoder.max_len=9"], "did you mean 'retrieval.encoder.max_length'?"),
        (["retrieval.encoder.kind=lexical", "retrieval.encoder.max_length=9"], "kind = 'lexical' has none"),
        (["retrieval.encoder.num_dimensions=9"], "retrieval.encoder.kind: is missing; set it to 'lexical' or 'hf'"),
        (["retrieval.encoder.kind=lexcal"], "retrieval.encoder.kind: expected 'lexical' or 'hf', got 'lexcal'"),
        (["sampling.kind=vllm", "sampling.max_seqs=9"], "did you mean 'sampling.max_num_seqs'?"),
        (["sampling.kind=vlmm"], "sampling.kind: expected 'transformers', 'vllm' or 'vllm_server', got 'vlmm'"),
        (["updat.epochs=2"], "unknown setting 'updat'; did you mean 'update'?"),
        (["epochs=2"], "unknown setting 'epochs'; did you mean 'update.epochs'?"),
        (["grpo.alpha=2"], "unknown setting 'grpo.alpha'; did you mean 'distillation.alpha'?"),
        (["path=x"], "did you mean 'model.path' or 'retrieval.encoder.path'?"),
        (["reward.qqqq=1"], "[reward] may have name, options, metric, format_bonus"),
    ],
    ids=str,
)
def test_an_unknown_key_gets_the_nearest_name_at_every_depth(overrides: list[str], said: str) -> None:
    message = problem("tiny", *overrides)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("iterations='5'", "iterations: expected integer ≥ 1 and < 2^31, got '5'"),
        ("iterations=true", "got True"),
        ("iterations=10000000000000000000000000", "< 2^31, got 10000000000000000000000000"),
        ("update.learning_rate=nan", "update.learning_rate: expected a finite number > 0, got nan"),
        ("distillation.alpha=inf", "distillation.alpha: expected a finite number ≥ 0, got inf"),
        ("update=3", "update: expected a section of settings, got 3"),
        ("update.betas=[0.9, 1.0]", "update.betas: expected array of 2: number ≥ 0 and < 1, got 1.0"),
        ("update.betas=[0.9]", "update.betas: expected array of 2: number ≥ 0 and < 1, got [0.9]"),
        ("model.lora_targets=[1, 2]", "model.lora_targets: expected text or array of text, got [1, 2]"),
        ("reward.metric=f2", "reward.metric: expected 'f1', 'em' or 'cover_em', got 'f2'"),
        ("evaluation.modes=[]", "evaluation.modes: expected non-empty array of 'greedy' or 'sampled', got []"),
        ("storage.keep_checkpoints=1", "storage.keep_checkpoints: expected integer ≥ 2, got 1"),
        ("grpo.importance_cap=0.5", "grpo.importance_cap: expected number ≥ 1, got 0.5"),
        ("seed=1979-05-27", "seed: expected integer ≥ 0 and < 2^63, got '1979-05-27'"),
    ],
)
def test_a_wrong_value_says_where_what_was_got_and_what_is_expected(override: str, said: str) -> None:
    message = problem("tiny", override)
    assert said in message
    assert "\n" not in message


def test_a_missing_setting_says_what_it_means(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("[model]\n", encoding="utf-8")
    assert "model.path: is missing and has no default; set it (Folder or hub name" in problem(str(path))


def test_wrong_types_one_line_each_with_what_was_got() -> None:
    lines = problem("tiny", "iterations=many", "update.betas=0.9", "rollout.group_size=1").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("tiny with --set: ") for line in lines)
    assert any("iterations" in line and "'many'" in line for line in lines)
    assert any("update.betas" in line and "0.9" in line for line in lines)
    assert any("rollout.group_size: expected integer ≥ 2, got 1" in line for line in lines)


def test_every_setting_says_what_it_means_and_whose_choice_the_method_is() -> None:
    reference = settings_reference()
    rows = [line for line in reference.splitlines() if line.startswith("| `")]
    assert all(len(line.rsplit(" | ", 1)[1]) > len("x. |") for line in rows), "a setting without a meaning"
    assert {name.rpartition(".")[2] for name in setting_names(Settings)} == {line.split("`")[1] for line in rows}
    technical = {"constant_tokens", "enabled", "gradient_parts_every"}
    technical |= {
        "options",
        "masking_options",
        "divergence_options",
        "gate_options",
        "head_chunk",
        "max_tokens_per_microbatch",
        "gradient_checkpointing",
    }
    for section in (RewardSettings, GrpoSettings, HindsightSettings, DistillationSettings, UpdateSettings):
        for name, field in section.model_fields.items():
            marked = any(mark in str(field.description) for mark in ("paper", "relative", "ours"))
            assert marked != (name in technical), f"{section.__name__}.{name}: {field.description}"


def test_the_settings_reference_is_the_one_that_ships() -> None:
    page = Path(__file__).parents[3] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_reference(), (
        "docs/settings.md is not what the settings say; make it again with: "
        "sdsearch schema --settings > docs/settings.md"
    )


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


def test_settings_that_the_page_of_choices_names_exist() -> None:
    page = Path(__file__).parents[3] / "docs" / "explanation" / "choices.md"
    rows = [line.split("|")[:5] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    known = set(setting_names(Settings))
    for _, question, _, cell, _ in rows:
        before = ""
        for name in re.findall(r"`([a-z_.]+)\*?`", cell):
            full = f"{before.split('.')[0]}{name}" if name.startswith(".") else name
            assert any(item == full or (item.startswith(full) and "*" in cell) for item in known), f"{question}: {full}"
            before = full
