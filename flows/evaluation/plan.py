"""What an evaluation is asked for: whose weights, which data sets, how many questions of each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from pydantic import ValidationError

from flows.console.errors import UserError
from flows.settings.load import apply_overrides, load_settings, setting_differences, stored_settings
from schemas.base import hash_json, nearest_name
from schemas.commands import value_text
from schemas.names import is_name
from schemas.records.evaluation import EvaluationMode
from schemas.records.ledger import RunRecord
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, TrainingKind
from schemas.settings.data import SetName, is_set_text, set_name
from schemas.settings.evaluation import ALL, EvaluatedSet, EvaluationSettings
from schemas.settings.explain import explain
from schemas.settings.root import Settings
from storage.workspace import validate_run_name

_CHANGEABLE: Final = re.compile(
    r"(data|retrieval|sampling|evaluation|storage|tracking)\..+|rollout\.questions_per_batch|model\.(device|torch_threads)"
)


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation: a run of its own (`run`) whose settings name the data sets, the questions and the decoding.

    `source` is the run whose weights of `version` are evaluated; None for a model folder, which is version 0.
    """

    run: str
    source: str | None
    version: int
    settings: Settings

    @property
    def sets(self) -> tuple[SetName, ...]:
        """The data sets in the table's order."""
        return self.settings.data.test_sets(self.settings.evaluation.split)

    @property
    def evaluated(self) -> tuple[EvaluatedSet, ...]:
        """The same data sets with the number of their questions."""
        return self.settings.evaluation.asked_sets(self.settings.data)

    @property
    def kind(self) -> EvaluationKind:
        """What the run's record says of it."""
        return EvaluationKind(source=self.source, version=self.version)

    @property
    def title(self) -> str:
        """Whose weights, as people name them."""
        return self.settings.model.path if self.source is None else f"run {self.source}, version {self.version}"


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None takes the settings' own."""

    datasets: str | None = None
    split: str | None = None
    num_questions: int | None = None
    mode: EvaluationMode = "greedy"
    name: str | None = None


def plan_run(source: RunRecord, overrides: Sequence[str], request: Request) -> EvaluationPlan:
    """Return the evaluation of a run's current policy, with the run's settings.

    Raises UserError as `settings_of_run`, and for a request that cannot be met.
    """
    settings = settings_of_run(source, overrides, "evaluate --run")
    return _plan(source.run, source.policy_version, settings, request)


def settings_of_run(source: RunRecord, overrides: Sequence[str], command: str) -> Settings:
    """Return what `command` puts questions to a run's policy with: the run's settings, changed by `overrides`.

    Raises UserError for a run that trains nothing, and for a change that would make it another policy's.
    """
    match source.kind:
        case ReplayKind(source=sampled):
            raise UserError(f"run '{source.run}' is a replay and trains nothing; name the run that sampled: {sampled}")
        case EvaluationKind():
            raise UserError(
                f"run '{source.run}' is an evaluation itself; it is shown again with: sdsearch resume {source.run}"
            )
        case TrainingKind() | ForkKind():
            pass
        case unknown:
            assert_never(unknown)
    settings = stored = stored_settings(source)
    if overrides:
        settings = apply_overrides(json.loads(source.settings_json), overrides, f"run '{source.run}'")
    # The stored text lacks the settings that came after the run: they are no change.
    for name, _, _ in setting_differences(stored.model_dump_json(), settings):
        if not _CHANGEABLE.fullmatch(name):
            raise UserError(
                f"--set {name}: {command} takes the run's own settings; data.*, retrieval.*, sampling.*, "
                "evaluation.*, storage.*, tracking.*, rollout.questions_per_batch and model.device can be changed"
            )
    return settings


def plan_model(policy: str | None, config: str, overrides: Sequence[str], request: Request) -> EvaluationPlan:
    """Return the evaluation of a model folder or hub name with the settings of `config`; UserError as of `plan_run`."""
    return _plan(None, 0, settings_of_model(policy, config, overrides), request)


def settings_of_model(policy: str | None, config: str, overrides: Sequence[str]) -> Settings:
    """Return what questions are put to a model with: the settings of `config`; UserError as of `load_settings`."""
    named = [] if policy is None else [f"model.path={value_text(policy)}"]
    return load_settings(config, [*overrides, *named])


def plan_of(record: RunRecord) -> EvaluationPlan:
    """Return what an evaluation that exists was asked for."""
    assert isinstance(record.kind, EvaluationKind), f"{record.run} is no evaluation"
    return EvaluationPlan(record.run, record.kind.source, record.kind.version, stored_settings(record))


def chosen_sets(settings: Settings, datasets: str | None, split: str | None) -> tuple[SetName, ...]:
    """Return the data sets that `--datasets` names: 'all', or names that data.test has, or name:split.

    Raises UserError, with the nearest name, for one that data.test does not have.
    """
    data = settings.data
    if datasets is None:
        return (SetName(data.dataset, split or settings.evaluation.split),)
    if split is not None:
        raise UserError("--split chooses a split of data.dataset; with --datasets write it to the name, such as nq:dev")
    known = data.test_sets(settings.evaluation.split)
    if datasets.strip() == ALL:
        return known
    names = [text.strip() for text in datasets.split(",") if text.strip()]
    if not names:
        raise UserError(f"--datasets {datasets!r}: expected 'all' or names, such as nq,hotpotqa")
    return tuple(dict.fromkeys(_chosen(text, known) for text in names))


def _chosen(text: str, known: Sequence[SetName]) -> SetName:
    found = [name for name in known if text in (name.dataset, str(name))]
    if found:
        return found[0]
    if ":" in text and is_set_text(text):
        return set_name(text, "")
    names = [name.dataset for name in known]
    near = nearest_name(text, names)
    hint = f"did you mean '{near}'?" if near else f"data.test has {', '.join(names)}"
    raise UserError(
        f"--datasets: data.test has no '{text}'; {hint} (name a data set that is not there with its split: nq:dev)"
    )


def _plan(source: str | None, version: int, settings: Settings, request: Request) -> EvaluationPlan:
    sets = chosen_sets(settings, request.datasets, request.split)
    number = request.num_questions
    if number is None:
        number = 0 if request.datasets is not None else settings.evaluation.num_questions
    changes = {"num_questions": number, "modes": (request.mode,), "split": request.split or settings.evaluation.split}
    changes["sets"] = {}  # They are of a run that trains.
    try:
        evaluation = EvaluationSettings.model_validate(settings.evaluation.model_dump() | changes)
    except ValidationError as error:
        raise UserError(explain(error, EvaluationSettings, "evaluate")) from error
    data = settings.data.model_copy(update={"test": tuple(map(str, sets))})
    settings = settings.model_copy(update={"evaluation": evaluation, "data": data})
    request_hash = hash_json([source, version, settings.content_hash()])
    made = f"{_stem(source or settings.model.path)}-evaluation-{request_hash[:8]}"
    return EvaluationPlan(validate_run_name(request.name or made), source, version, settings)


def _stem(policy: str) -> str:
    """Return the last part of a run's or model's name, as far as it can be part of a path."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", policy.rstrip("/").rpartition("/")[2])[:50].lstrip(".-")
    return stem if is_name(stem) else "policy"
