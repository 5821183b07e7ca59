"""Settings that came after runs were made: a run of before is the same run, and is compared by what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flows.run.stage_inputs import input_hash
from flows.settings.load import load_settings, setting_differences
from flows.training.stages.sample import SAMPLE
from flows.training.stages.teacher import TEACHER
from flows.training.stages.update import UPDATE
from schemas.base import hash_json
from schemas.settings.added import ADDED, FREE, FREE_PARTS
from schemas.settings.root import STORED, Settings


def of_before(settings: Settings) -> dict[str, Any]:
    """What a run stored before there were the added settings."""
    values = settings.model_dump(mode="json")
    for name in ADDED:
        section, _, field = name.partition(".")
        del values[section][field]
    return values


@pytest.mark.parametrize("config", ["tiny", "quickstart_grpo", "paper_3b"])
def test_a_run_of_before_has_the_same_settings_and_hash(config: str) -> None:
    settings = load_settings(config)
    before = of_before(settings)
    assert setting_differences(json.dumps(before), settings) == []
    for section in FREE:
        del before[section]
    for name in FREE_PARTS:
        section, _, field = name.partition(".")
        before[section].pop(field, None)
    assert Settings.model_validate_json(json.dumps(before), context=STORED) == settings
    assert settings.content_hash() == hash_json(before), "what was stored beside the run then"


def test_each_added_setting_stands_with_its_default() -> None:
    values = load_settings("tiny").model_dump(mode="json")
    for name, default in ADDED.items():
        section, _, field = name.partition(".")
        assert values[section][field] == default, name


def test_another_value_is_a_difference_and_another_run() -> None:
    plain, own = load_settings("tiny"), load_settings("tiny", ["distillation.clip=own"])
    assert plain.content_hash() != own.content_hash()
    assert setting_differences(json.dumps(of_before(plain)), own) == [("distillation.clip", "joint", "own")]
    stages = {
        kind.name: [input_hash(each, kind, [], "") for each in (plain, own)] for kind in (SAMPLE, TEACHER, UPDATE)
    }
    assert {name for name, (one, other) in stages.items() if one != other} == {"update"}


def test_a_stage_of_before_is_not_done_again() -> None:
    settings = load_settings("tiny")
    read = {name: value for name, value in of_before(settings).items() if name in ("seed", "distillation")}
    hashed = hash_json({"settings": read, "inputs": ["x"], "code": "c"})
    kind = replace(UPDATE, reads=("seed", "distillation"))
    assert input_hash(settings, kind, ["x"], "c") == hashed
