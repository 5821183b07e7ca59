"""Plays a case: a run is killed, resumed, killed again, resumed to its end, and compared with one that was not."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from schemas.records.ledger import StageHistory
from storage.errors import StorageError
from tests.crash.compare import Snapshot, differences, snapshot, tables
from tests.crash.events import Event, Strike
from tests.crash.forkserver import Ended, ForkServer
from tests.crash.points import Kill

RUN = "killed"
RESUME = ["resume", RUN, "--no-prefect"]
_REBUILD = ["db", "rebuild"]
_SETTINGS = (
    "model.torch_threads=1",
    "data.questions_per_iteration=2",
    "rollout.group_size=3",
    "rollout.questions_per_batch=1",
    "rollout.max_searches=2",
    "rollout.max_new_tokens=24",
    "evaluation.num_questions=1",
    'evaluation.modes=["greedy"]',
    "storage.keep_checkpoints=2",
)
_ROLLS_OUT = re.compile(r"sample@(\d+)(?: of (\S+))? rolls out (.*)")
_TRAINS = re.compile(r"update@(\d+)(?: of (\S+))? trains")
Work = tuple[str, str, int, str]
"""What was done: 'sample' or 'update', the run, the iteration, and the question that was sampled."""


@dataclass(frozen=True)
class Case:
    """Kills of one run: the n-th strikes the n-th process.

    `of_rebuild`: the processes make the database again from the files of a finished run.
    """

    name: str
    kills: tuple[Kill, ...]
    of_rebuild: bool = False

    @property
    def fresh_index(self) -> bool:
        return any(kill.fresh_index for kill in self.kills)

    @property
    def eager(self) -> bool:
        return any(kill.eager for kill in self.kills)


@dataclass
class Outcome:
    """What became of a case: `struck` are the labels of the kills that took place."""

    case: Case
    struck: list[str] = field(default_factory=list)
    num_resumes: int = 0
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def went_wrong(self) -> bool:
        return bool(self.lost or self.differing)


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run; `more` are the settings that it has beside those of the matrix."""

    workspace: Path
    trace: list[Event]
    snapshot: Snapshot
    rebuild_trace: list[Event] = field(default_factory=list)
    ranks: int = 1
    more: tuple[str, ...] = ()


def train_command(iterations: int, run: str = RUN, ranks: int = 1, more: Sequence[str] = ()) -> list[str]:
    """Return the command of a run of seconds with the mini policy that still passes through every stage."""
    values = (*_SETTINGS, f"iterations={iterations}", f"distributed.ranks={ranks}", *more)
    settings = [text for value in values for text in ("--set", value)]
    return ["train", "tiny", "--no-prefect", "--run", run, *settings]


def play_reference(
    server: ForkServer, folder: Path, iterations: int, ranks: int = 1, more: tuple[str, ...] = ()
) -> Reference:
    """Run without a kill; AssertionError when it does not end well or teaches nothing."""
    folder.mkdir(parents=True)
    ended = server.run(train_command(iterations, ranks=ranks, more=more), folder, eager=True)
    assert ended.code == 0, ended.output
    held = snapshot(folder / "workspace")
    weights = {value for name, value in held.items() if name.startswith("model") and ".safetensors: " in name}
    expected = ranks * min(iterations, 2)
    assert len(weights) >= expected if more else len(weights) == expected, f"the updates change nothing: {weights}"
    return Reference(folder / "workspace", ended.trace, held, ranks=ranks, more=more)


def trace_rebuild(server: ForkServer, reference: Reference) -> Reference:
    """Return the reference with the trace of its database being made again."""
    ended = server.run(_REBUILD, reference.workspace.parent)
    assert ended.code == 0, ended.output
    return replace(reference, rebuild_trace=ended.trace)


def play(case: Case, server: ForkServer, folder: Path, reference: Reference, iterations: int) -> Outcome:
    """Play a case in a new folder; nothing is asserted, all that went wrong is in the outcome."""
    outcome = Outcome(case)
    if case.of_rebuild:
        _play_rebuild(outcome, server, folder, reference)
    else:
        _play_training(outcome, server, folder, reference, iterations)
    return outcome


def _play_rebuild(outcome: Outcome, server: ForkServer, folder: Path, reference: Reference) -> None:
    """Kill the making of a database; resume must repair what is missing then, and a second making leave no trace."""
    workspace = folder / "workspace"
    shutil.copytree(reference.workspace, workspace)
    (kill,) = outcome.case.kills
    if not _has_struck(kill.strike, server.run(_REBUILD, folder, kill.strike)):
        return
    outcome.struck.append(kill.label)
    for command in (RESUME, _REBUILD):
        outcome.num_resumes += 1
        ended = server.run(command, folder)
        if ended.code:
            outcome.lost.append(f"{command}: exit code {ended.code}: {ended.output[-600:]}")
            return
        expected = {name: held for name, held in reference.snapshot.items() if name.startswith("table ")}
        outcome.differing += differences(tables(workspace), expected)
    outcome.differing += differences(snapshot(workspace), reference.snapshot)


def _play_training(outcome: Outcome, server: ForkServer, folder: Path, reference: Reference, iterations: int) -> None:
    case = outcome.case
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    if not case.fresh_index:
        for name in ("corpora", "indexes"):
            shutil.copytree(reference.workspace / name, workspace / name)
    for number, kill in enumerate((*case.kills, None)):
        outcome.num_resumes += number > 0
        before = finished_work(workspace)
        strike = kill.strike if kill else None
        command = next_command(workspace, iterations, reference)
        ended = server.run(command, folder, strike, eager=case.eager)
        outcome.lost += done_again(before, ended.trace)
        if kill is None or not _has_struck(kill.strike, ended):
            outcome.lost += _ignored(kill.strike, ended) if kill else []
            break
        outcome.struck.append(kill.label)
    outcome.lost += [] if ended.code == 0 else [f"exit code {ended.code}: {ended.output[-600:]}"]
    try:
        outcome.differing += differences(snapshot(workspace), reference.snapshot) if ended.code == 0 else []
    except StorageError as error:
        outcome.lost.append(str(error))


def next_command(workspace: Path, iterations: int, reference: Reference) -> list[str]:
    """Return what a person would type: resume, or train again when the run was not made yet."""
    exists = (workspace / "artifacts" / f"run={RUN}" / "run.json").exists()
    return RESUME if exists else train_command(iterations, ranks=reference.ranks, more=reference.more)


def _has_struck(strike: Strike, ended: Ended) -> bool:
    """True when the signal ended the process, as it can only be after the event happened.

    kill -9 cannot be answered; after SIGTERM and Ctrl-C the program says how to go on.
    """
    if strike.signal == signal.SIGKILL:
        return ended.code == -strike.signal
    return ended.code == 128 + strike.signal and "continue with: sdsearch resume" in ended.output


def _ignored(strike: Strike, ended: Ended) -> list[str]:
    """Return a line when a signal was sent at its event and the process went on all the same."""
    happened = sum(event.name == strike.event for event in ended.trace) >= strike.occurrence
    return [f"{strike} did not end the process"] if happened and not strike.delay_s and ended.code == 0 else []


def finished_work(workspace: Path) -> set[Work]:
    """Return what the files say is finished, of the run and of what goes on in its place."""
    done: set[Work] = set()
    for folder in workspace.glob(f"artifacts/run={RUN}*/iteration=*/stage=*"):
        run, iteration, stage = (part.partition("=")[2] for part in folder.parts[-3:])
        if stage == "sample":
            for path in folder.glob("[!.]*.parquet"):
                questions = pq.ParquetFile(path).read(["question"]).column("question").to_pylist()
                done |= {("sample", run, int(iteration), question["id"]) for question in questions}
        elif stage == "update" and _is_done(folder / "stage.json"):
            done.add(("update", run, int(iteration), ""))
    return done


def _is_done(path: Path) -> bool:
    return path.exists() and StageHistory.model_validate_json(path.read_bytes()).done is not None


def done_again(before: set[Work], trace: Sequence[Event]) -> list[str]:
    """Return a line for each piece of finished work that a process did once more."""
    again: list[str] = []
    for event in trace:
        if rolled := _ROLLS_OUT.fullmatch(event.name):
            run, iteration = rolled[2] or RUN, int(rolled[1])
            questions = [name for name in rolled[3].split() if ("sample", run, iteration, name) in before]
            again += [f"iteration {iteration}: the finished group of {name} was sampled again" for name in questions]
        elif trained := _TRAINS.fullmatch(event.name):
            run, iteration = trained[2] or RUN, int(trained[1])
            if ("update", run, iteration, "") in before:
                again.append(f"iteration {iteration}: the finished update was trained again")
    return again
