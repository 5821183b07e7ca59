"""Odd settings and files, drawn the same way each time: the right value, or exit code 2 with one line.

`python -m tests.fuzz.run --minutes 10` draws new ones for as long as is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from flows.console.errors import PEOPLES_ERRORS
from flows.doctor.doctor import Asked, diagnose
from flows.doctor.hardware import Hardware
from flows.settings.load import load_settings
from schemas.settings.root import Settings
from schemas.settings.tree import setting_names
from storage.workspace import Workspace
from tests.fuzz.bench import Bench
from tests.fuzz.commands import disagreement, problems_of, runs_in, sdsearch, train
from tests.fuzz.files import draw_files
from tests.fuzz.pools import draw_choices, leaves, odd_values
from tests.fuzz.run import check

T = TypeVar("T")
BARE = Hardware(ram_bytes=64 * 10**9, gpus=(), torch_cuda=None, vllm=None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def in_one_line(make: Callable[[], T]) -> T | None:
    """Return what is made, None where it is refused, in one line for one odd value."""
    try:
        return make()
    except PEOPLES_ERRORS as error:
        said = str(error)
    assert "\n" not in said, said
    return None


def loaded(config: str, overrides: list[str]) -> Settings | None:
    """Return the settings, None where they are refused."""
    return in_one_line(lambda: load_settings(config, overrides))


def test_every_leaf_is_drawn() -> None:
    assert {leaf.name for leaf in leaves()} == set(setting_names(Settings))


def test_any_value_of_any_setting_is_read_as_it_is_or_refused_in_one_line(bench: Bench) -> None:
    num_read = num_refused = 0
    for leaf in leaves():
        for value in odd_values(leaf, bench):
            settings = loaded(leaf.config(bench), [*leaf.overrides, f"{leaf.name}={value}"])
            if settings is None:
                num_refused += 1
                continue
            num_read += 1
            assert Settings.model_validate_json(settings.model_dump_json()) == settings, f"{leaf.name}={value}"
            assert all(ord(c) >= 32 for c in settings.model_dump_json()), "what a run stores is plain JSON"
    assert num_read > 300
    assert num_refused > 1000


def test_the_doctor_s_look_ends_in_checks_or_one_line(bench: Bench, tmp_path: Path) -> None:
    random = Random(0)
    for leaf in leaves():
        value = random.choice(odd_values(leaf, bench))
        config, overrides = leaf.config(bench), [*leaf.overrides, f"{leaf.name}={value}"]
        settings = loaded(config, overrides)
        if settings is None:
            continue
        asked = Asked(config, overrides, Workspace(tmp_path / "workspace"))
        checks = in_one_line(lambda asked=asked, settings=settings: diagnose(asked, settings, BARE)) or []
        assert all(check.ok or check.remedy for check in checks), f"{leaf.name}={value}"
        assert all("\n" not in check.remedy for check in checks), f"{leaf.name}={value}"


@pytest.mark.long
@pytest.mark.parametrize("number", range(8))
def test_files_changed_in_one_place(number: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench")
    config, overrides = draw_files(Random(f"files:{number}"), bench, tmp_path / "drawn")
    assert disagreement(config, overrides, tmp_path / "workspace") == [], f"{config} {overrides}"


@pytest.mark.parametrize("number", range(4))
def test_settings_with_an_odd_value(number: int) -> None:
    drawn, wrong = check(5, number)
    assert wrong == [], drawn


@pytest.mark.long
@pytest.mark.parametrize("number", range(2))
def test_settings_of_any_choice_train_to_the_end(number: int, bench: Bench, tmp_path: Path) -> None:
    config, overrides = draw_choices(Random(number), bench)
    workspace = tmp_path / "workspace"
    assert problems_of(train(config, overrides, workspace), (0,)) == [], overrides
    assert runs_in(workspace) == ["drawn"]
    assert sdsearch("db", "check", "--workspace", str(workspace)).code == 0
    answer = sdsearch(
        "sql", "select * from v_iterations where iteration = 1", "--format", "json", "--workspace", str(workspace)
    )
    (iteration,) = map(json.loads, answer.out.splitlines())
    assert iteration["num_rollouts"] == 4
