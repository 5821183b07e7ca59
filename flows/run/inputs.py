"""What a run was begun with is kept, and what it goes on with is compared: nothing changes under it without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flows.console.errors import UserError
from flows.console.interrupts import fork_command
from flows.plugins.check import plugin_sources
from flows.run.live import Runtime
from flows.run.model_files import model_changes
from schemas.records.ledger import RunRecord
from schemas.records.run_inputs import RunInputs
from schemas.settings.data import SetName
from storage.runs.run_inputs import read_run_inputs, write_run_inputs


def present_inputs(runtime: Runtime, sets: Sequence[SetName]) -> RunInputs:
    """Return what a run of these live objects has, with the questions of `sets`."""
    return RunInputs(
        frame=runtime.prompts.frame,
        max_prompt_tokens=runtime.prompts.measure.max_tokens,
        questions={str(name): runtime.questions.load(name).report.questions_sha256 for name in sets},
        model_files=runtime.base_hashes,
        plugins={name: dict(hashes) for name, hashes in plugin_sources(runtime.settings).items()},
        index_hash=runtime.index_fingerprint,
    )


def keep_inputs(runtime: Runtime, sets: Sequence[SetName]) -> None:
    """Keep what a run has, unless it was kept before; the caller holds the run's lock and has made its record."""
    workspace = runtime.storage.workspace
    if read_run_inputs(workspace, runtime.run) is None:
        write_run_inputs(workspace, runtime.run, present_inputs(runtime, sets))


def check_inputs(runtime: Runtime, record: RunRecord, sets: Sequence[SetName]) -> None:
    """Raise UserError, which says what changed and what to do, when a run that exists would go on with other inputs.

    Runs of programs that kept nothing are not compared.
    """
    kept = read_run_inputs(runtime.storage.workspace, record.run)
    if kept is None:
        return
    now = present_inputs(runtime, sets)
    changes = list(_changed_questions(runtime, kept, now))
    if model := model_changes(kept.model_files, now.model_files, with_weights=True):
        changes.append(f"model.path '{runtime.settings.model.path}' has changed ({model})")
    changes += _changed_plugins(kept, now)
    if kept.index_hash != now.index_hash:
        changes.append(
            f"what [retrieval] names was index {kept.index_hash[:16]} and is {now.index_hash[:16]} (its corpus, "
            "encoder, index settings or server)"
        )
    if changes:
        raise UserError(
            f"run '{record.run}' started with other inputs: {'; '.join(changes)}; put them back, or "
            f"{_instead(runtime, record, kept, now)}"
        )


def check_source_model(runtime: Runtime, version: int) -> None:
    """Raise UserError when the model folder that a source run was begun with has changed since.

    A fully tuned policy's weights beyond version 0 are in its checkpoint: only the rest of the folder counts then.
    """
    assert runtime.source is not None, "an evaluation of a run, a replay, or a run's policy that is asked"
    kept = read_run_inputs(runtime.storage.workspace, runtime.source)
    if kept is not None:
        _check_model(runtime, runtime.source, kept, version)


def _check_model(runtime: Runtime, run: str, kept: RunInputs, version: int) -> None:
    is_in_folder = runtime.settings.model.tuning == "lora" or not version
    if changes := model_changes(kept.model_files, runtime.base_hashes, with_weights=is_in_folder):
        raise UserError(
            f"model.path '{runtime.settings.model.path}' has changed since run '{run}' started ({changes}); put the "
            "files back"
        )


def check_policy_model(runtime: Runtime, record: RunRecord, version: int) -> None:
    """Raise UserError when the model folder that a run was begun with has changed and its policy needs it."""
    kept = read_run_inputs(runtime.storage.workspace, record.run)
    if kept is not None:
        _check_model(runtime, record.run, kept, version)


def _changed_questions(runtime: Runtime, kept: RunInputs, now: RunInputs) -> Iterator[str]:
    for name, sha256 in now.questions.items():
        known = kept.questions.get(name)
        if known != sha256:
            location = runtime.settings.data.location_of(name.partition(":")[0])
            former = (known or "none")[:12]
            yield f"the questions of {name} in {location} have changed (hash {former}, now {sha256[:12]})"


def _changed_plugins(kept: RunInputs, now: RunInputs) -> Iterator[str]:
    for setting, hashes in now.plugins.items():
        if files := model_changes(kept.plugins.get(setting, {}), hashes, with_weights=True):
            yield f"the plugin of {setting} has changed ({files})"


def _instead(runtime: Runtime, record: RunRecord, kept: RunInputs, now: RunInputs) -> str:
    if not record.trains:
        return "evaluate under another --name"
    is_lora = runtime.settings.model.tuning == "lora"
    if not record.policy_version or model_changes(kept.model_files, now.model_files, with_weights=is_lora):
        return "start another run with: --run NEW"
    return f"continue with them in a fork: {fork_command(record.run, runtime.storage.workspace.root)}"
