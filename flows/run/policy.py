"""The live policy: weights, optimiser and reference, always at a version that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, assert_never

import torch
from torch import Tensor

from flows.run.averages import Average, read_average, save_average
from flows.run.model_files import model_folder
from flows.settings.model_folder import MODEL_SETTINGS, exported
from schemas.errors import UserError, library_errors
from schemas.records.ledger import ArtifactRef
from schemas.settings.root import DistillationSettings, Settings
from sdsearch.credit.teacher import TeacherWeights
from sdsearch.model.averages import as_weights_of, average_step, swapped_weights, trained_tensors
from sdsearch.model.policy import (
    context_limit,
    load_model,
    load_tokenizer,
    reference_weights,
    set_adapters,
    trainable_parameters,
    with_lora,
)
from sdsearch.sampling.vllm_weights import Passage, PolicyWeights, reader_of
from sdsearch.seeds import derive_seed
from sdsearch.training.optimiser import load_optimiser_state, make_optimiser, optimiser_state
from storage.disk.files import write_bytes_atomic
from storage.disk.tensors import load_tensors, save_tensors, tensors_sha256
from storage.errors import DamagedArtifactError
from storage.runs.checkpoints import OPTIMISER_FILE, CheckpointStore

_ADAPTER_FILE = "adapter_model.safetensors"


def check_device(device: str) -> None:
    """Raise UserError when torch cannot put a number on the device here and read it back (`meta` keeps none)."""
    remedy = "set model.device = 'cpu', or run where the device is"
    with library_errors(f"model.device '{device}' cannot be used on this machine", remedy):
        torch.zeros(1, device=device).item()


def check_ranks(device: str, ranks: int) -> None:
    """Raise UserError when there are fewer cards here than ranks, which have one each; on a CPU any number fits."""
    if torch.device(device).type == "cuda" and torch.cuda.device_count() < ranks:
        raise UserError(
            f"distributed.ranks puts {ranks} ranks on each machine, and this one has {torch.cuda.device_count()} CUDA "
            "devices, of which each rank needs one; lower distributed.ranks, or raise distributed.nodes"
        )


class LivePolicy:
    """Holds the policy at one version; version 0 is the starting weights, version n follows the n-th update.

    `start` is the version that the run begins with: 0, or of a fork the one that its source had. The optimiser and the
    reference are loaded when an update first asks for them: nothing else needs their memory.
    """

    def __init__(self, settings: Settings, run: str, checkpoints: CheckpointStore, start: int = 0) -> None:
        self._settings = settings
        self._run = run
        self._checkpoints = checkpoints
        self._start = start
        self.base_folder = model_folder(settings.model.path)
        self.tokenizer = load_tokenizer(self.base_folder, settings.model.trust_remote_code)
        self.model: Any = None
        self.version = -1
        self._optimiser: Any = None
        self._folder: Path | None = None
        self._elsewhere: Callable[[int, Sequence[Passage]], list[Tensor]] | None = None

    @property
    def max_context_tokens(self) -> int:
        """Tokens that a conversation may have: what the model can number, else what the settings let it become."""
        return context_limit(self.model) or self._settings.longest_conversation

    @property
    def weights(self) -> PolicyWeights:
        """Where an engine finds the weights of this version."""
        if not self.version:
            return PolicyWeights(0, "base", self.base_folder)
        folder = self._checkpoints.path(self._run, self.version).resolve()
        return PolicyWeights(self.version, "adapter" if self._settings.model.tuning == "lora" else "full", str(folder))

    def move_to(self, version: int) -> None:
        """Make the weights those of `version`; nothing happens when they are already.

        Raises DamagedArtifactError when the version's checkpoint is missing or altered.
        """
        if version == self.version:
            return
        self._folder = self._checkpoints.verify(self._run, version) if version else None
        if self._elsewhere is None:
            self.model = self._load(self._folder).to(self._settings.model.device)
        elif self.model is None:
            self.model = self._load(None).to("meta")
        self._optimiser = None
        self.version = version

    def leave_weights_to(self, read: Callable[[int, Sequence[Passage]], list[Tensor]]) -> None:
        """Free the weights for good: other processes hold them. The model keeps its settings and shapes.

        read: returns what those processes, at a version, say of passages (see `Reader`).
        """
        self._elsewhere = read
        if self.model is not None:
            self.model = self.model.to("meta")

    def read(self, passages: Sequence[Passage]) -> list[Tensor]:
        """Return the log-probabilities (T,) of each passage's tokens under the weights of this version."""
        if self._elsewhere is not None:
            return self._elsewhere(self.version, passages)
        return reader_of(self.model)(passages)

    @property
    def optimiser(self) -> Any:
        """The optimiser in the state of this version."""
        if self._optimiser is None:
            self._optimiser = make_optimiser(self.model, self._settings.update)
            if self._folder is not None:
                self._check_optimiser()
                load_optimiser_state(self.model, self._optimiser, load_tensors(self._folder / OPTIMISER_FILE))
        return self._optimiser

    def _check_optimiser(self) -> None:
        """Refuse a version that was stored without its optimiser: a resumed run does not come here."""
        if not self._checkpoints.has_optimiser(self._run, self.version):
            raise DamagedArtifactError(
                f"version {self.version} of run '{self._run}' was stored without its optimiser "
                f"(storage.optimiser_every = {self._settings.storage.optimiser_every}), so no update can follow it; "
                "resume takes the updates since the last stored one again"
            )

    @property
    def frozen_reference(self) -> Any:
        """The starting weights that KL is measured to; None where there is no KL, or LoRA adapters can be left out."""
        return self._frozen_start if self._settings.grpo.kl_coefficient else None

    @cached_property
    def _frozen_start(self) -> Any:
        if self._settings.model.tuning == "lora":
            return None
        return self._load_model(self.base_folder).to(self._settings.model.device).requires_grad_(False)

    @property
    def keeps_average(self) -> bool:
        """Whether each version's checkpoint has the moving average of the policies up to it."""
        return self._settings.distils and self._settings.distillation.teacher == "ema"

    def teacher(self, distillation: DistillationSettings) -> TeacherWeights:
        """Return what opens the model with the teacher's weights; errors as of `average`."""
        match distillation.teacher:
            case "live":
                return lambda: nullcontext(self.model)
            case "initial":
                return partial(reference_weights, self.model, self._frozen_start)
            case "ema":
                average = as_weights_of(self.model, self.average(distillation.ema_decay).weights)
                return partial(swapped_weights, self.model, average)
            case unknown:
                assert_never(unknown)

    def abandon(self) -> None:
        """Forget the live weights: they are no version's, for example after an update that failed half-way."""
        self.version = -1

    def average(self, decay: float) -> Average:
        """Return the moving average of the policies up to this version: the stored one, else made from checkpoints.

        It begins as the weights of version 0, or of the version that a fork begins with where its source kept none.
        Raises DamagedArtifactError when a checkpoint that it has to be made from is missing or altered.
        """
        begun = self.version
        while (average := self._known_average(begun, decay)) is None:
            begun -= 1
        for version in range(begun + 1, self.version + 1):
            average = Average(average_step(average.weights, self._model_at(version), decay), decay)
        return average

    def _known_average(self, version: int, decay: float) -> Average | None:
        """Return a version's average where no earlier version is needed for it."""
        stored = read_average(self._checkpoints.verify(self._run, version)) if version else None
        if stored is not None and (stored.decay == decay or version == self._start):
            return stored
        if version in (0, self._start):
            return Average(trained_tensors(self._model_at(version)), decay)
        return None

    def _model_at(self, version: int) -> Any:
        if version == self.version:
            return self.model
        return self._load(self._checkpoints.verify(self._run, version) if version else None)

    def save_as(self, version: int, average: Average | None = None) -> ArtifactRef:
        """Write the live weights and optimiser as a checkpoint and call them `version`.

        average: that of the version before, where the checkpoint is to have its own.
        """

        def save(folder: Path) -> None:
            self._save_files(folder)
            if self._settings.stores_optimiser(version):
                save_tensors(folder / OPTIMISER_FILE, optimiser_state(self.model, self.optimiser))
            if average is not None:
                own = average_step(average.weights, self.model, average.decay)
                save_average(folder, Average(own, average.decay))

        reference = self._checkpoints.write(self._run, version, save)
        self.version = version
        return reference

    def _save_files(self, folder: Path, **weights: dict[str, Tensor]) -> None:
        self.model.save_pretrained(folder, **weights)
        self.tokenizer.save_pretrained(folder)
        if self._settings.model.tuning == "full":  # What can be a run's model.path brings its settings along.
            write_bytes_atomic(folder / MODEL_SETTINGS, exported(self._settings), folder)

    def export_to(self, folder: Path, *, adapter: bool) -> None:
        """Write the live weights as a plain Hugging Face folder, without the optimiser.

        A LoRA adapter is merged into its base unless `adapter`. The live weights are no version's afterwards.
        """
        merges = self._settings.model.tuning == "lora" and not adapter
        model = self.model.merge_and_unload() if merges else self.model
        self.abandon()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if not adapter:  # What can be a run's model.path brings its settings along.
            write_bytes_atomic(folder / MODEL_SETTINGS, exported(self._settings), folder)

    def sha256(self) -> str:
        """Return the hash of the trained tensors."""
        return tensors_sha256(trainable_parameters(self.model))

    def _load(self, folder: Path | None) -> Any:
        settings = self._settings.model
        if settings.tuning == "full":
            return self._load_model(folder or self.base_folder)
        targets = settings.lora_targets if isinstance(settings.lora_targets, str) else list(settings.lora_targets)
        seed = derive_seed(self._settings.seed, "lora") % 2**32
        model = with_lora(self._load_model(self.base_folder), settings.lora_rank, settings.lora_alpha, targets, seed)
        if folder is not None:
            # PEFT's own reader would open a pickled file where the other one is missing.
            set_adapters(model, load_tensors(folder / _ADAPTER_FILE))
        return model

    def _load_model(self, folder: str | Path) -> Any:
        settings = self._settings.model
        return load_model(folder, settings.dtype, settings.trust_remote_code, settings.attention)


def set_threads(settings: Settings) -> None:
    """Fix torch's threads, so that a run's numbers do not depend on how busy the machine is."""
    torch.set_num_threads(settings.model.torch_threads)
