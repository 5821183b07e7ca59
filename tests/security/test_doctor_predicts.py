"""What training refuses at its start, the doctor has called missing; what the doctor calls fine, trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.bench import Bench, setting
from tests.fuzz.commands import doctor, problems_of, runs_in, sdsearch, train
from tests.fuzz.refused import REFUSED, Case

pytestmark = pytest.mark.long


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_the_doctor_says_what_training_refuses(case: Callable[[Bench], Case], bench: Bench, tmp_path: Path) -> None:
    config, overrides = case(bench)
    workspace = tmp_path / "workspace"
    seen = doctor(config, overrides, workspace)
    assert problems_of(seen, (1, 2)) == []
    assert not workspace.exists(), "a look leaves nothing behind"
    trained = train(config, overrides, workspace)
    assert problems_of(trained, (2,)) == []
    assert runs_in(workspace) == []


def _home(bench: Bench) -> list[str]:
    bench.model("home/mini-copy")
    return ["model.path=~/mini-copy"]


def _marked(bench: Bench) -> list[str]:
    path = Path(bench.config())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return []


def _one_token(bench: Bench) -> list[str]:
    return ["rollout.max_new_tokens=1"]


def _a_file_called_world(bench: Bench) -> list[str]:
    other = bench.folder / "world"
    other.write_bytes(bench.corpus.read_bytes())
    return [setting("retrieval.corpus", str(other))]


FINE: dict[str, Callable[[Bench], list[str]]] = {
    "a model at home": _home,
    "a settings file with a mark": _marked,
    "turns of one token": _one_token,
    "a corpus called world": _a_file_called_world,
}


@pytest.mark.parametrize("change", FINE.values(), ids=list(FINE))
def test_what_the_doctor_calls_fine_trains(
    change: Callable[[Bench], list[str]], bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(bench.folder / "home"))
    overrides = change(bench)
    workspace = tmp_path / "workspace"
    assert problems_of(doctor(bench.config(), overrides, workspace), (0,)) == []
    assert problems_of(train(bench.config(), overrides, workspace), (0,)) == []
    assert runs_in(workspace) == ["drawn"]
    assert sdsearch("db", "check", "--workspace", str(workspace)).code == 0
