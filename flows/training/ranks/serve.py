"""One rank of a run: waits for commands of the process that holds the run, and does each together with the others.

It waits in the store, not in a collective, so that no watchdog counts the time in which the run samples.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined] # torch.distributed lists no names

from flows.console.errors import PEOPLES_ERRORS
from flows.run.cards import free_cached
from flows.run.live import Runtime
from flows.run.policy import set_threads
from flows.run.progress import SilentReporter
from flows.run.stage_files import StageFiles
from flows.training.ranks.agent import connect
from flows.training.ranks.attendance import let_others_speak, sign_in
from flows.training.ranks.messages import (
    ANSWER,
    COMMAND,
    DONE,
    END,
    ERROR,
    PROGRAM,
    PROGRESS,
    READ,
    SETTINGS,
    Command,
    Failure,
    Program,
)
from flows.training.ranks.policy import ShardedPolicy
from flows.training.ranks.program import check_program, this_program
from flows.training.stages.teacher import teach
from flows.training.stages.update import train
from schemas.records.ledger import ArtifactRef
from schemas.settings.cards import engine_sleeps
from schemas.settings.root import STORED, Settings
from sdsearch.plugins import blaming_plugins
from storage.storage import Storage
from storage.workspace import Workspace

_NO_MEMORY: Final = "can't allocate memory"  # torch's words for the CPU's.
# torch's words where a rank waits for another one to join, and gloo's where it waits for what another one sends.
_WAITED: Final = re.compile("wait timeout|timed out waiting", re.IGNORECASE)
_GLOO: Final = "gloo/transport"
_FOREVER: Final = timedelta(days=30)
WORK: Final[dict[str, Callable[..., list[ArtifactRef]]]] = {work.__name__: work for work in (teach, train)}
"""What a command may name."""


class _Progress(SilentReporter):
    """Tells the run's process how far a stage is."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store

    def stage_progress(self, done: int, total: int) -> None:
        """Say it once: all ranks are as far."""
        if dist.get_rank() == 0:
            self._store.set(PROGRESS, json.dumps([done, total]))


def _open_group(settings: Settings, store: TCPStore) -> None:
    device = torch.device(settings.model.device).type
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Objects travel by gloo: they need no device.
    backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
    sign_in(store, int(os.environ["RANK"]))
    dist.init_process_group(backend, timeout=timedelta(seconds=settings.distributed.timeout_s))


def _own_device(settings: Settings) -> Settings:
    """Return the settings with this rank's device in place of the run's."""
    if torch.device(settings.model.device).type != "cuda":
        return settings
    model = settings.model.model_copy(update={"device": f"cuda:{os.environ['LOCAL_RANK']}"})
    return settings.model_copy(update={"model": model})


def _failure(error: Exception) -> Failure:
    is_for_people = isinstance(error, PEOPLES_ERRORS)
    text = str(error) if is_for_people else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY in str(error)
    advice = "; out of memory: lower update.max_tokens_per_microbatch, or use more ranks" if is_memory else ""
    waited = not is_for_people and _WAITED.search(str(error)) is not None
    return Failure(text=" ".join(text.split()) + advice, is_for_people=is_for_people, waited=waited)


def _is_of_others(error: Exception) -> bool:
    """Tell whether this rank ends for another one, which it waited for or which closed its connections."""
    return isinstance(error, RuntimeError) and (_GLOO in str(error) or _WAITED.search(str(error)) is not None)


def _answer(live: Runtime, files: StageFiles, command: Command) -> list[Any]:
    """Do a command together with the other ranks; return what the first one tells of it, as JSON has it."""
    if command.work == READ:
        live.policy.move_to(command.version)
        return [logprobs.tolist() for logprobs in live.policy.read(command.passages)]
    refs = WORK[command.work](live, files, *command.records)
    files.forget()
    return [ref.model_dump(mode="json") for ref in refs]


def serve(endpoint: str, workspace: Path, run: str, source: str | None) -> None:
    """Do the commands one after another until there are no more."""
    store = connect(endpoint, _FOREVER)
    try:
        settings = Settings.model_validate_json(store.get(SETTINGS), context=STORED)
        expected = Program.model_validate_json(store.get(PROGRAM))
        check_program(f"rank {os.environ['RANK']}", this_program(settings), expected)
        set_threads(settings)
        _open_group(settings, store)
        storage = Storage(Workspace.open(workspace))
        live = Runtime(settings, run, storage, _Progress(store), source)
        policy_of = source or run
        live.policy = ShardedPolicy(
            _own_device(settings), policy_of, storage.checkpoints, storage.ledger.start_of(policy_of)
        )
        files = StageFiles(storage.artifacts)
        for number in itertools.count():
            command = Command.model_validate_json(store.get(f"{COMMAND}/{number}"))
            if command.work == END:
                break
            with blaming_plugins():
                answer = _answer(live, files, command)
            if dist.get_rank() == 0:
                store.set(f"{ANSWER}/{number}", json.dumps(answer))
            if engine_sleeps(settings):
                free_cached()  # The engine wakes on the same cards.
            store.set(f"{DONE}/{number}/{dist.get_rank()}", "")
    except Exception as error:
        store.set(f"{ERROR}/{os.environ['RANK']}", _failure(error).model_dump_json())
        if _is_of_others(error):
            let_others_speak(store, int(os.environ["WORLD_SIZE"]))
        raise
    dist.destroy_process_group()
