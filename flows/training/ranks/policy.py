"""The live policy as one of several ranks has it: weights, optimiser and reference in shards, checkpoints as ever."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from flows.run.averages import Average
from flows.run.policy import OPTIMISER_FILE, LivePolicy
from schemas.records.ledger import ArtifactRef
from schemas.settings.root import Settings
from sdsearch.model.policy import causal_lm, trainable_parameters
from sdsearch.model.ranks import rank, told_by_first, whole
from sdsearch.model.sharding import as_shard_of, rank_mesh, shard
from sdsearch.training.optimiser import MASTER, load_optimiser_state, make_optimiser, optimiser_state
from storage.disk.tensors import load_tensors, tensors_sha256
from storage.runs.checkpoints import CheckpointStore

_TYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ShardedPolicy(LivePolicy):
    """Holds this rank's shards of the policy; all ranks call its methods together.

    Checkpoints are those of a single process, so that any number of ranks goes on from them. Where all weights are
    tuned the shards are fp32, the masters of what the layers compute in, and AdamW needs no copies of them.
    """

    def __init__(self, settings: Settings, run: str, checkpoints: CheckpointStore, start: int = 0) -> None:
        super().__init__(settings, run, checkpoints, start)
        self._mesh = rank_mesh(settings.model.device, settings.distributed)
        self._sha256 = ""
        is_full = settings.model.tuning == "full"
        self._has_masters = is_full and settings.model.dtype != "float32"

    def move_to(self, version: int) -> None:
        """Errors as of `LivePolicy`; the first rank alone reads all files to verify them."""
        if version == self.version:
            return
        if version and rank() == 0:
            self._checkpoints.verify(self._run, version)
        told_by_first(version)
        self._folder = self._checkpoints.path(self._run, version) if version else None
        model = self._load(self._folder)
        if self._has_masters:
            model.float()
            self._load_masters(model)
        shard(model.to(self._settings.model.device), self._mesh, self._compute_type)
        self.model = model
        self._optimiser = None
        self.version = version

    @property
    def optimiser(self) -> Any:
        """The optimiser in the state of this version, in shards."""
        if self._optimiser is None:
            self._optimiser = make_optimiser(self.model, self._settings.update)
            weights = trainable_parameters(self.model)
            moments = {name: value for name, value in self._stored_state().items() if not _is_master(name)}
            state = {name: _placed(name, value, weights) for name, value in moments.items()}
            load_optimiser_state(self.model, self._optimiser, state)
        return self._optimiser

    @cached_property
    def _frozen_start(self) -> Any:
        """The starting weights, in shards; None with LoRA, whose adapters can be left out."""
        reference = super()._frozen_start
        if reference is not None:
            shard(reference, self._mesh)
        return reference

    def save_as(self, version: int, average: Average | None = None) -> ArtifactRef:
        """Gather weights and optimiser on the first rank, which writes the checkpoint; all call them `version`.

        No average is kept: settings with one are refused for several ranks.
        """
        assert average is None, "distillation.teacher 'ema' is refused for several ranks"
        weights = _gathered(trainable_parameters(self.model))
        state = _gathered(optimiser_state(self.model, self.optimiser))
        if self._has_masters:
            state |= {f"{MASTER}.{name}": weight for name, weight in weights.items()}
            weights = {name: weight.to(_TYPES[self._settings.model.dtype]) for name, weight in weights.items()}
        reference = None
        if rank() == 0:
            self._sha256 = tensors_sha256(weights)
            reference = self._checkpoints.write(self._run, version, lambda folder: self._save(folder, weights, state))
        reference = told_by_first(reference)
        self.version = version
        return reference

    def sha256(self) -> str:
        """Return the hash of the trained tensors as they were saved last; the first rank knows it."""
        return self._sha256

    def _save(self, folder: Path, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        # A dictionary of its own: transformers empties it. What is not trained (LoRA's base) is in no checkpoint.
        self._save_files(folder, state, state_dict=dict(weights))
        if self._has_masters:  # transformers wrote the type of the shards.
            config = causal_lm(self.model).config
            config.dtype = _TYPES[self._settings.model.dtype]
            config.save_pretrained(folder)

    @property
    def _compute_type(self) -> torch.dtype | None:
        return _TYPES[self._settings.model.dtype] if self._has_masters else None

    def _stored_state(self) -> dict[str, Tensor]:
        return load_tensors(self._folder / OPTIMISER_FILE) if self._folder is not None else {}

    @torch.no_grad()
    def _load_masters(self, model: Any) -> None:
        """Give weights that were read in their own type the fp32 values that the optimiser kept of them."""
        stored = self._stored_state()
        for name, weight in trainable_parameters(model).items():
            if (master := stored.get(f"{MASTER}.{name}")) is not None:
                weight.copy_(master)


def _is_master(name: str) -> bool:
    return name.startswith(f"{MASTER}.")


def _placed(name: str, value: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return a moment as its weight is spread; AdamW's step count is one number on every rank."""
    weight = weights.get(name.partition(".")[2])
    return value if weight is None or not value.dim() else as_shard_of(weight, value)


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whole, in the first rank's memory; the others let go of each at once."""
    kept = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if rank() == 0:
            kept[name] = gathered.cpu().contiguous()
    return kept
