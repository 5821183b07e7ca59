"""What a warm-up is asked for, and the settings of each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.evaluation.plan import EvaluationPlan, Request, plan_model
from flows.settings.load import load_settings
from schemas.commands import value_text
from schemas.settings.root import Settings
from storage.runs.warmups import WarmupStore
from storage.storage import Storage
from storage.workspace import Workspace, validate_run_name


@dataclass(frozen=True)
class WarmupPlan:
    """A warm-up of a model by the settings of `config`."""

    name: str
    config: str
    overrides: tuple[str, ...]
    settings: Settings
    storage: Storage

    @property
    def store(self) -> WarmupStore:
        """Its files."""
        return WarmupStore(self.storage.workspace, self.name)

    @property
    def training(self) -> Settings:
        """The settings that the policy is opened with: its optimiser is the warm-up's, stored at each checkpoint."""
        update = self.settings.update.model_copy(update={"learning_rate": self.settings.warmup.learning_rate})
        storage = self.settings.storage.model_copy(update={"optimiser_every": 1})
        return self.settings.model_copy(update={"update": update, "storage": storage})

    def evaluation(self, when: str, policy: Path | None) -> EvaluationPlan:
        """Return the evaluation of the model before the warm-up, or of the policy in a folder: a run of its own."""
        policy_name = None if policy is None else str(policy)
        return plan_model(policy_name, self.config, self.overrides, Request(name=f"{self.name}-{when}"))

    @property
    def start_words(self) -> list[str]:
        """What follows `sdsearch train` so that a run starts from the policy."""
        words = [self.config]
        for override in [*self.overrides, f"model.path={value_text(str(self.store.policy))}"]:
            words += [] if override.startswith("warmup.") else ["--set", override]
        return words


def plan_warmup(config: str, name: str, overrides: Sequence[str], folder: Path) -> WarmupPlan:
    """Return what is asked for; UserError and StorageError for settings, names and workspaces that cannot be used."""
    settings = load_settings(config, overrides)
    validate_run_name(f"{name}-before")
    storage = Storage(Workspace.open(folder), settings.storage.database_deadline_s)
    return WarmupPlan(name, config, tuple(overrides), settings, storage)
