"""A policy that is loaded to be asked: its model, its tokenizer, and the settings that it is used with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.run.policy import LivePolicy
from schemas.records.run_inputs import PromptFrame
from schemas.settings.root import Settings
from sdsearch.credit.teacher import TeacherWeights
from sdsearch.model.pretrained import without_progress_bars
from sdsearch.protocol.ports import open_protocol
from sdsearch.protocol.prompting import render_frame
from storage.runs.checkpoints import CheckpointStore
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage
from storage.workspace import Workspace


@dataclass(frozen=True, repr=False)
class Policy:
    """A version of a policy; made by `load_policy` and `Run.policy`."""

    settings: Settings
    version: int
    """Updates behind the weights; 0 for the starting weights."""
    prompt_frame: PromptFrame
    """What stands around each question in a prompt: of a run, as it was begun."""
    _origin: str
    _live: LivePolicy

    @property
    def model(self) -> Any:
        """The transformers model, in evaluation mode; with LoRA, PEFT's model around it."""
        return self._live.model

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self._live.tokenizer

    @property
    def reference(self) -> Any:
        """The frozen starting weights that KL is measured to; None without KL, and with LoRA, whose adapters go off."""
        with without_progress_bars():
            return self._live.frozen_reference

    def _teacher(self, settings: Settings) -> TeacherWeights:
        """Return what opens the model with the teacher's weights, as distillation.teacher of the settings says."""
        with without_progress_bars():
            return self._live.teacher(settings.distillation)

    @property
    def max_context_tokens(self) -> int:
        """Tokens that a conversation may have."""
        return self._live.max_context_tokens

    def __repr__(self) -> str:
        return f"Policy(version {self.version}{self._origin}, {self.settings.model.path})"


def load_policy(settings: Settings) -> Policy:
    """Load the starting weights that model.path names, with an empty optimiser.

    Weights of a run's policy: `open_run(...).policy(version)`. Raises UserError when model.path holds no model that
    may be loaded.

    Examples:
        >>> policy = sdsearch.load_policy(sdsearch.load_settings("tiny"))
        >>> policy, sum(parameter.numel() for parameter in policy.model.parameters())
        (Policy(version 0, mini), 1117312)
    """
    live = LivePolicy(settings, "", CheckpointStore(Workspace(Path())))  # Version 0 is in no checkpoint.
    return _loaded(settings, 0, live, None, "")


def load_version(storage: Storage, settings: Settings, run: str, version: int) -> Policy:
    """Load a version of a run's policy; DamagedArtifactError when its checkpoint is missing or altered."""
    live = LivePolicy(settings, run, storage.checkpoints, storage.ledger.start_of(run))
    kept = read_run_inputs(storage.workspace, run)
    return _loaded(settings, version, live, kept.frame if kept else None, f" of run '{run}'")


def _loaded(settings: Settings, version: int, live: LivePolicy, frame: PromptFrame | None, origin: str) -> Policy:
    with without_progress_bars():
        live.move_to(version)
    rollout = settings.rollout
    frame = frame or render_frame(live.tokenizer, rollout.template, open_protocol(rollout), rollout.wording)
    return Policy(settings, version, frame, origin, live)
