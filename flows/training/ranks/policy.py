"""The live policy as one of several ranks has it: weights, optimiser and reference in shards, checkpoints as ever."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from flows.run.averages import Average
from flows.run.policy import LivePolicy
from flows.training.ranks.checkpoint import read_shards, write_spread
from schemas.records.ledger import ArtifactRef
from schemas.settings.root import Settings
from sdsearch.model.policy import causal_lm, trainable_parameters
from sdsearch.model.ranks import rank, told_by_first, whole
from sdsearch.model.sharding import rank_mesh, shard
from sdsearch.training.optimiser import MASTER, load_optimiser_state, make_optimiser, optimiser_state
from storage.disk.spread import StoredTensors, is_stored
from storage.disk.tensors import TensorsDigest
from storage.runs.checkpoints import OPTIMISER_FILE, CheckpointStore

WEIGHTS_FILE: Final = "model.safetensors"
_TYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ShardedPolicy(LivePolicy):
    """Holds this rank's shards of the policy; all ranks call its methods together.

    Checkpoints are folders as Hugging Face lays them out, with a file of each rank, so that any number of ranks goes on
    from them. No rank has the whole policy in memory: weights are mapped from their files until they are spread. Where
    all weights are tuned the shards are fp32, the masters of what the layers compute in, and AdamW needs no copies.
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
        self.model = self._load(self._folder)
        shard(self.model, self._mesh, self._compute_type)
        if self._has_masters:
            self._load_masters()
        self._optimiser = None
        self.version = version

    @property
    def optimiser(self) -> Any:
        """The optimiser in the state of this version, in shards."""
        if self._optimiser is None:
            self._optimiser = make_optimiser(self.model, self._settings.update)
            if self._folder is not None:
                self._check_optimiser()
                load_optimiser_state(self.model, self._optimiser, self._stored_moments(self._folder))
        return self._optimiser

    def _stored_moments(self, folder: Path) -> dict[str, Tensor]:
        stored, weights = StoredTensors(folder / OPTIMISER_FILE), trainable_parameters(self.model)
        of = {name: weights[name.partition(".")[2]] for name in stored.names if not _is_master(name)}
        return read_shards(stored, of)

    @cached_property
    def _frozen_start(self) -> Any:
        """The starting weights, in shards; None with LoRA, whose adapters can be left out."""
        if self._settings.model.tuning == "lora":
            return None
        reference = self._load_model(self.base_folder).requires_grad_(False)
        shard(reference, self._mesh)
        return reference

    def save_as(self, version: int, average: Average | None = None) -> ArtifactRef:
        """Write the checkpoint, each rank its part of it, and call weights and optimiser `version`.

        No average is kept: settings with one are refused for several ranks.
        """
        assert average is None, "distillation.teacher 'ema' is refused for several ranks"
        reference = None
        if rank() == 0:
            reference = self._checkpoints.write(self._run, version, lambda folder: self._save(folder, version))
        else:
            self._save_parts(Path(told_by_first("")), version)
        reference = told_by_first(reference)
        self.version = version
        return reference

    def sha256(self) -> str:
        """Return the hash of the trained tensors as they were saved last; the first rank knows it."""
        return self._sha256

    def _save(self, folder: Path, version: int) -> dict[str, str]:
        """Write what the first rank alone writes, then the parts together; return the files' known hashes."""
        # transformers writes all but the weights: it would remove those that other ranks have written.
        self._save_files(folder, state_dict={})
        if self._has_masters:  # transformers wrote the type of the shards.
            config = causal_lm(self.model).config
            config.dtype = _TYPES[self._settings.model.dtype]
            config.save_pretrained(folder)
        hashes = self._save_parts(Path(told_by_first(str(folder))), version)
        return {path.relative_to(folder).as_posix(): sha256 for path, sha256 in hashes.items()}

    def _save_parts(self, folder: Path, version: int) -> dict[Path, str]:
        weights = trainable_parameters(self.model)
        hashes: dict[Path, str] = {}
        digest = TensorsDigest() if rank() == 0 else None
        if self._settings.model.tuning == "full":
            hashes |= write_spread(folder / WEIGHTS_FILE, weights, _TYPES[self._settings.model.dtype], digest)
        else:
            self._save_adapters(folder, weights, digest)
        self._sha256 = digest.sha256 if digest else ""
        if self._settings.stores_optimiser(version):
            masters = {f"{MASTER}.{name}": weight for name, weight in weights.items()} if self._has_masters else {}
            hashes |= write_spread(folder / OPTIMISER_FILE, optimiser_state(self.model, self.optimiser) | masters)
        return hashes

    def _save_adapters(self, folder: Path, weights: dict[str, Tensor], digest: TensorsDigest | None) -> None:
        """Gather LoRA's adapters, which are small, on the first rank: PEFT knows one file alone."""
        gathered = {name: whole(weight.detach()) for name, weight in sorted(weights.items())}
        if digest is not None:
            for name, adapter in gathered.items():
                digest.add(name, adapter)
            # A dictionary of its own: it is emptied. LoRA's base is in no checkpoint.
            self.model.save_pretrained(folder, state_dict=dict(gathered))

    @property
    def _compute_type(self) -> torch.dtype | None:
        return _TYPES[self._settings.model.dtype] if self._has_masters else None

    @torch.no_grad()
    def _load_masters(self) -> None:
        """Give weights that were read in their own type the fp32 values that the optimiser kept of them."""
        if self._folder is None or not is_stored(self._folder / OPTIMISER_FILE):
            return
        stored = StoredTensors(self._folder / OPTIMISER_FILE)
        weights = trainable_parameters(self.model)
        masters = {f"{MASTER}.{name}": weight for name, weight in weights.items()}
        kept = {name: masters[name] for name in stored.names if name in masters}
        for name, master in read_shards(stored, kept).items():
            masters[name].copy_(master)


def _is_master(name: str) -> bool:
    return name.startswith(f"{MASTER}.")
