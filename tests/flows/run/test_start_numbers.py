"""Every start compares sampler and update with the plain model: fresh, resumed, with adapters, evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import flows.run.preflight
from sdsearch.model.policy import output_layer
from sdsearch.training.selfcheck import Difference, check_model
from tests.fuzz.bench import Bench, setting
from tests.fuzz.commands import begin, doctor, problems_of, runs_in, sdsearch, train
from tests.support.families import small_model

pytestmark = pytest.mark.long


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The head's weights of each model that a start compared, and that comparison done."""
    seen: list[torch.Tensor] = []

    def check(model: torch.nn.Module, *arguments: object, **options: object) -> list[Difference]:
        seen.append(output_layer(model).weight.detach().clone())
        return check_model(model, *arguments, **options)

    monkeypatch.setattr(flows.run.preflight, "check_model", check)
    return seen


def test_a_resumed_run_compares_its_newest_weights(bench: Bench, tmp_path: Path, checked: list[torch.Tensor]) -> None:
    workspace = tmp_path / "workspace"
    assert problems_of(train(bench.config(), [], workspace), (0,)) == []
    assert problems_of(sdsearch("resume", "drawn", "--no-prefect", "--workspace", str(workspace)), (0,)) == []
    fresh, resumed = checked
    assert not torch.equal(fresh, resumed), "after an update"


@pytest.mark.parametrize("overrides", [["model.tuning=lora", "model.lora_targets=q_proj"], ["update.dropout=true"]])
def test_a_start_with_other_settings(
    bench: Bench, tmp_path: Path, checked: list[torch.Tensor], overrides: list[str]
) -> None:
    assert problems_of(begin(bench.config(), overrides, tmp_path / "workspace"), (0,)) == []
    assert len(checked) == 1


def test_the_doctor_prints_the_differences(bench: Bench, tmp_path: Path) -> None:
    printed = " ".join(doctor(bench.config(), [], tmp_path / "workspace").out.split())
    assert "start: numbers update within" in printed


def test_a_model_that_would_be_computed_wrongly_is_refused(bench: Bench, tmp_path: Path) -> None:
    """And named, with the path; nothing is left behind."""
    folder = bench.model("other")
    small_model("mamba", vocab_size=2048).save_pretrained(folder)
    ended = train(bench.config(), [setting("model.path", str(folder))], tmp_path / "workspace")
    assert problems_of(ended, (2,)) == []
    assert "MambaForCausalLM is computed wrongly by the update" in ended.err
    assert runs_in(tmp_path / "workspace") == []
