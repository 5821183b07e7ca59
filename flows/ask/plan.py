"""Who is asked: the newest policy of a run, or a model, and with which settings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.console.errors import UserError
from flows.evaluation.plan import settings_of_model, settings_of_run
from schemas.commands import command
from schemas.records.evaluation import EvaluationMode
from schemas.records.ledger import RunRecord
from schemas.records.question import Question
from schemas.settings.root import Settings
from schemas.settings.sampling import TransformersSamplerSettings
from storage.storage import Storage
from storage.workspace import Workspace, open_existing

_SAMPLING = "sampling."
_ASKED = "asked"


@dataclass(frozen=True)
class AskPlan:
    """A policy to ask; `source` is the run whose newest weights they are, None for a model of the settings."""

    source: str | None
    settings: Settings
    mode: EvaluationMode
    is_chosen: bool = False  # Nobody named the run: it is the workspace's newest.

    def title(self, version: int) -> str:
        """Whose weights, as people name them."""
        if self.source is None:
            return f"model {self.settings.model.path}"
        return f"run {self.source}, version {version}"


def plan_asking(
    run: str | None,
    policy: str | None,
    config: str,
    overrides: Sequence[str],
    mode: EvaluationMode,
    folder: Path,
) -> tuple[AskPlan, Storage]:
    """Return who is asked and the workspace: `run`'s newest policy, `policy` as a model, else the newest finished run.

    Raises UserError when both are named, for a run without a policy, for a workspace without a finished run, and for
    settings that cannot be used; RunNotFoundError for a run that is not there.
    """
    if policy is None:
        workspace = open_existing(folder, needs_database=False)
        storage = Storage(workspace, read_only=True)
        record = newest_finished(storage) if run is None else storage.ledger.get_run(run)
        settings = _in_process(settings_of_run(record, overrides, "ask --run"), overrides)
        return AskPlan(record.run, settings, mode, is_chosen=run is None), storage
    if run is not None:
        raise UserError("ask takes --run NAME or --policy FOLDER; leave one of them out")
    settings = _in_process(settings_of_model(policy, config, overrides), overrides)
    return AskPlan(None, settings, mode), Storage(Workspace.open(folder), read_only=True)


def newest_finished(storage: Storage) -> RunRecord:
    """Return the finished run with a policy that was worked on last; UserError when the workspace has none."""
    records = [record for record in storage.ledger.list_runs() if record.trains]
    finished = [record for record in records if record.status == "done"]
    if finished:
        return max(finished, key=lambda record: record.updated_at)
    root = storage.workspace.root
    if not records:
        raise UserError(
            f"the workspace {root} has no run with a policy; train one with "
            f"{command('train', 'quickstart', workspace=root)}, or name a model with --policy FOLDER"
        )
    latest = max(records, key=lambda record: record.updated_at)
    raise UserError(
        f"no run of the workspace {root} is finished; ask one as it is with --run {latest.run}, or name a model with "
        "--policy FOLDER"
    )


def as_question(text: str) -> Question:
    """Return a person's text as a question, of which no golden answer is known; UserError for what is no text."""
    asked = text.strip()
    if not asked:
        raise UserError('the question is empty; expected a text, such as: sdsearch ask "Who wrote Faust?"')
    try:
        identity = hashlib.sha256(asked.encode()).hexdigest()[:16]
    except UnicodeEncodeError as error:
        raise UserError(f"the question is no valid text ({error.reason}); write it in UTF-8") from error
    return Question(id=identity, dataset=_ASKED, split=_ASKED, question=asked, golden_answers=("",))


def _in_process(settings: Settings, overrides: Sequence[str]) -> Settings:
    """Return settings that sample in this process unless a person asks for another sampler.

    The run's own engine or servers may be at work on other weights, which a question must not replace.
    """
    if any(override.startswith(_SAMPLING) for override in overrides):
        return settings
    return settings.model_copy(update={"sampling": TransformersSamplerSettings()})
