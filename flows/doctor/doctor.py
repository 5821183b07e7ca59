"""`sdsearch doctor`: what is missing on this machine, and what training would refuse, before anything long starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, assert_never

from rich.console import Console

from flows.console.errors import PEOPLES_ERRORS, UserError
from flows.console.terminal import make_table, print_line
from flows.data.prepare import named_sets
from flows.data.questions import Questions
from flows.doctor.checks import Check, answers, memory_checks, model_checks, unknown_model
from flows.doctor.hardware import Hardware, read_hardware
from flows.doctor.hub import ModelFiles, hub_data, model_files
from flows.doctor.retrieval import retrieval_checks
from flows.doctor.together import meet, rank_checks, read_meeting
from flows.settings.load import load_settings
from flows.settings.model_folder import brought_lines, model_notes
from schemas.commands import command, path_argument, quoted
from schemas.paths import local_path
from schemas.records.question_set import PreparedSet
from schemas.settings.data import HUB, WORLD, SetName
from schemas.settings.root import Settings
from schemas.settings.rules import notes
from schemas.settings.sampling import TransformersSamplerSettings, VllmSamplerSettings, VllmServerSamplerSettings
from sdsearch.data.questions import file_at, glance
from storage.data.question_sets import QuestionSets
from storage.runs.artifacts import ArtifactStore
from storage.workspace import Workspace

_READ_WHOLE_BYTES = 4_000_000


class Asked(NamedTuple):
    """What a person asked about: settings as named on the command line, and the workspace."""

    config: str
    overrides: Sequence[str]
    workspace: Workspace

    def command(self, *words: str) -> str:
        """Return the command that does something else with the same settings and workspace."""
        config = path_argument(self.config)
        return command(*words, config, overrides=self.overrides, workspace=self.workspace.root)


def doctor(config: str, overrides: Sequence[str], folder: Path, console: Console) -> bool:
    """Print a row a check of the settings that `config` and `overrides` name; True when nothing is missing."""
    settings = load_settings(config, overrides)
    hardware = read_hardware(with_gpus=settings.model.device != "cpu")
    with console.status("looking"):
        workspace = Workspace(local_path(folder).resolve())
        checks = diagnose(Asked(config, overrides, workspace), settings, hardware)
        checks += start_checks(settings, workspace, checks)
    _print_checks(checks, console)
    for line in [*brought_lines(settings), *(f"note: {note}" for note in [*notes(settings), *model_notes(settings)])]:
        print_line(console, line)
    return _print_verdict(config, checks, console)


def meet_others(endpoint: str, machines: int, machine: int, timeout_s: float, folder: Path, console: Console) -> bool:
    """Meet the other machines and print what all share; True when nothing is missing.

    Raises UserError for an endpoint or a number that cannot be.
    """
    meeting = read_meeting(endpoint, machines, machine, timeout_s)
    with console.status("waiting for the other machines"):
        checks = meet(meeting, local_path(folder).resolve())
    _print_checks(checks, console)
    return _print_verdict(f"machine {machine} of {machines}", checks, console)


def _print_checks(checks: Sequence[Check], console: Console) -> None:
    rows = [(check.name, check.found, check.needed, "ok" if check.ok else "missing") for check in checks]
    console.print(make_table(("check", "found", "needed", ""), rows))


def _print_verdict(what: str, checks: Sequence[Check], console: Console) -> bool:
    """Print what to do about what is missing; True where nothing is."""
    missing = [check for check in checks if not check.ok]
    for remedy in dict.fromkeys(check.remedy for check in missing):
        names = ", ".join(check.name for check in missing if check.remedy == remedy)
        print_line(console, f"- {names}: {remedy}")
    verdict = f"{len(missing)} of {len(checks)} are missing" if missing else "nothing is missing"
    print_line(console, f"{what}: {verdict}")
    return not missing


def diagnose(asked: Asked, settings: Settings, hardware: Hardware) -> list[Check]:
    """Return every check of the settings against a machine and a workspace, which need not exist yet."""
    model = model_files(settings.model.path)
    workspace = asked.workspace
    return [
        *model_checks(settings, model),
        *_question_checks(asked.command("data", "prepare"), settings, workspace),
        *retrieval_checks(asked.command("index", "build"), settings.retrieval, workspace),
        *_sampler_checks(settings, hardware),
        *_memory(settings, model, hardware, workspace),
        *rank_checks(settings),
        *_server_checks(),
    ]


def start_checks(settings: Settings, workspace: Workspace, before: Sequence[Check]) -> list[Check]:
    """Return what training asks before it begins, asked without a trace in the workspace.

    `before` are the checks that need no model: where one of them fails, loading would only fail too, or take long.
    """
    if any(not check.ok for check in before):
        return []
    from flows.run.preflight import START_CHECKS, open_trial
    from flows.run.progress import SilentReporter

    found: list[Check] = []
    with open_trial(settings, workspace, SilentReporter()) as runtime:
        for check in START_CHECKS:
            try:
                found.append(Check(check.name, check.look(runtime), "-", True))
            except PEOPLES_ERRORS as error:
                found.append(Check(check.name, "refused", "-", False, str(error)))
                break  # Later checks rely on earlier ones.
    return found


def _question_checks(preparing: str, settings: Settings, workspace: Workspace) -> Iterator[Check]:
    prepared = {
        SetName(item.report.dataset, item.report.split): item
        for item in QuestionSets(ArtifactStore(workspace)).prepared()
        if isinstance(item, PreparedSet)
    }
    questions = Questions(settings.data)
    for name in named_sets(settings):
        location = settings.data.location_of(name.dataset)
        known = prepared.get(name)
        try:
            if known and known.report.location == location:
                found = f"{known.report.num_kept} questions, prepared"
            else:
                found = _found_questions(questions, location, name)
        except UserError as error:
            remedy = f"{error}; where there is a network this loads and checks it: {preparing}"
            yield Check(f"questions {name}", "not there", location, False, remedy)
        else:
            yield Check(f"questions {name}", found, location, True)


def _found_questions(questions: Questions, location: str, name: SetName) -> str:
    """Return what is there of a data set; UserError when it is not, or its first row cannot be read."""
    if location.startswith(HUB) and not local_path(location.removeprefix(HUB)).is_dir():
        source = location.removeprefix(HUB)
        cached = hub_data(source, name.dataset, name.split)
        if cached is None:
            raise UserError(f"{source} is not in the hub's cache here")
        return f"in {cached}"
    path = file_at(location, name)
    if location == WORLD or (path.is_file() and path.stat().st_size <= _READ_WHOLE_BYTES):
        return f"{questions.load(name).report.num_kept} questions"
    glance(questions.rows(name), location, name)
    return f"{path.stat().st_size / 1e6:.0f} MB" if path.is_file() else "folder"


def _sampler_checks(settings: Settings, hardware: Hardware) -> Iterator[Check]:
    match settings.sampling:
        case VllmSamplerSettings():
            remedy = "pip install -e '.[vllm]' where there is a GPU, make vllm-install where there is none"
            yield Check("vLLM", hardware.vllm or "not installed", "installed", hardware.vllm is not None, remedy)
        case VllmServerSamplerSettings(urls=urls, api_key_env=key):
            for url in urls:
                remedy = f"start it: vllm serve {quoted(settings.model.path)}, or correct sampling.urls"
                yield answers(f"vLLM server {url}", url, remedy)
            if key:
                remedy = f"export {key}=…"
                yield Check(f"${key}", "set" if os.environ.get(key) else "not set", "set", key in os.environ, remedy)
        case TransformersSamplerSettings():
            yield Check("sampler", "transformers", "transformers", True)
        case unknown:
            assert_never(unknown)


def _memory(settings: Settings, model: ModelFiles, hardware: Hardware, workspace: Workspace) -> list[Check]:
    return memory_checks(settings, model, hardware, workspace) or [unknown_model(settings)]


def _server_checks() -> Iterator[Check]:
    from flows.orchestration.prefect_server import check_named_server, set_environment

    try:
        set_environment()
        url = check_named_server()
    except UserError as error:
        yield Check("Prefect server", "refused", "-", False, str(error))
    else:
        yield Check("Prefect server", "answers" if url else "started by train", url or "-", True)
