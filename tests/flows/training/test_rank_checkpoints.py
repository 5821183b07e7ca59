"""Checkpoints of ranks: plain folders, written a tensor at a time, of which each rank reads its own rows."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from flows.training.ranks import checkpoint
from flows.training.ranks.checkpoint import read_shards, write_spread
from schemas.settings.distributed import DistributedSettings
from schemas.settings.root import UpdateSettings
from sdsearch.model.policy import trainable_parameters
from sdsearch.model.ranks import whole
from sdsearch.model.sharding import rank_mesh, shard
from sdsearch.training.optimiser import load_optimiser_state, make_optimiser, optimiser_state
from storage.disk.files import sha256_file
from storage.disk.spread import StoredTensors
from storage.disk.tensors import TensorsDigest, load_tensors, tensors_sha256
from tests.support.builders import make_model
from tests.support.ranks import on_ranks

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def sharded(ranks: int) -> tuple[Any, Any]:
    """A policy in shards, and its optimiser after one step."""
    model = make_model()
    shard(model, rank_mesh("cpu", DistributedSettings(ranks=ranks)))
    optimiser = make_optimiser(model, UpdateSettings(learning_rate=1e-2))
    for index, weight in enumerate(trainable_parameters(model).values()):
        weight.grad = torch.full_like(weight, 0.1 * (index + 1))
    optimiser.step()
    return model, optimiser


class Gathered:
    """Stands for `whole`, and counts the bytes of gathered tensors that live at once."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.most = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        found = whole(tensor)
        if found is not tensor and found.dim():
            key = id(found)
            self.live[key] = found.numel() * found.element_size()
            weakref.finalize(found, self.live.pop, key)
            self.most = max(self.most, sum(self.live.values()))
        return found


def write(folder: str) -> dict[str, Any]:
    model, optimiser = sharded(2)
    gathered = Gathered()
    checkpoint.whole = gathered  # type: ignore[attr-defined]
    digest = TensorsDigest()
    weights = trainable_parameters(model)
    hashes = write_spread(Path(folder) / "model.safetensors", weights, digest=digest)
    hashes |= write_spread(Path(folder) / "optimiser" / "state.safetensors", optimiser_state(model, optimiser))
    kept = {name: whole(weight.detach()) for name, weight in weights.items()}
    state = {name: whole(tensor.detach()) for name, tensor in optimiser_state(model, optimiser).items()}
    largest = max(weight.numel() * weight.element_size() for weight in kept.values())
    sha256 = digest.sha256
    return {"hashes": hashes, "weights": kept, "state": state, "most": gathered.most, "largest": largest, "sha": sha256}


def read(folder: str, ranks: int) -> dict[str, Any]:
    model = make_model()
    shard(model, rank_mesh("cpu", DistributedSettings(ranks=ranks)))
    weights = trainable_parameters(model)
    stored = StoredTensors(Path(folder) / "optimiser" / "state.safetensors")
    rows = read_shards(stored, {name: weights[name.partition(".")[2]] for name in stored.names})
    optimiser = make_optimiser(model, UpdateSettings())
    load_optimiser_state(model, optimiser, rows)
    local = sum(tensor.to_local().numel() for tensor in rows.values() if tensor.dim())  # type: ignore[operator]
    state = {name: whole(tensor.detach()) for name, tensor in optimiser_state(model, optimiser).items()}
    return {"local": local, "state": state}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_files_of_two_ranks_are_a_plain_folder_that_three_ranks_and_one_process_read(tmp_path: Path) -> None:
    first, second = on_ranks(2, write, str(tmp_path))
    assert first["hashes"] == second["hashes"] == {path: sha256_file(path) for path in tmp_path.rglob("*.safetensors")}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert first["sha"] == tensors_sha256(first["weights"])
    assert same(load_tensors(tmp_path / "model.safetensors"), first["weights"])
    assert same(load_tensors(tmp_path / "optimiser" / "state.safetensors"), first["state"])
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pt"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(first["weights"])
    make_model().config.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same({name: weight.detach() for name, weight in opened.named_parameters()}, first["weights"])
    # No rank held more than one tensor whole.
    assert 0 < first["most"] == second["most"] == first["largest"]
    third = on_ranks(3, read, str(tmp_path), 3)
    total = sum(tensor.numel() for tensor in first["state"].values() if tensor.dim())
    assert sum(rank["local"] for rank in third) == total
    assert max(rank["local"] for rank in third) < total / 2
    assert all(same(rank["state"], first["state"]) for rank in third)
