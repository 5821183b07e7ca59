"""A few kills of the matrix: what was finished stays, nothing is done twice, and the end is bit for bit the same."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from storage.database.connection import Database
from storage.runs.lock import RunLock
from storage.workspace import Workspace
from tests.crash.compare import differences, snapshot
from tests.crash.events import Event, Strike
from tests.crash.forkserver import ForkServer
from tests.crash.harness import (
    RESUME,
    RUN,
    Case,
    Reference,
    done_again,
    finished_work,
    play,
    play_reference,
    train_command,
)
from tests.crash.points import Kill

pytestmark = pytest.mark.timeout(900)
ITERATIONS = 2


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="module")
def reference(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return play_reference(server, tmp_path_factory.mktemp("crash") / "reference", ITERATIONS)


def kill(event: str, number: signal.Signals = signal.SIGKILL, delay_s: float = 0.0, halve: bool = False) -> Kill:
    return Kill(event, Strike(event, 1, delay_s, halve, number), eager=True)


KILLS = (
    kill("sample@1 sync artifacts/run=killed/iteration=00001/stage=sample/groups.parquet~", halve=True),
    kill("update@1 trains", signal.SIGTERM, delay_s=0.1),
    kill("update@1 renamed artifacts/run=killed/iteration=00001/stage=update/stage.json"),
    kill("start", delay_s=0.3),
    kill("score@2 sql COMMIT", signal.SIGINT),
    kill("update@2 sync checkpoints/run=killed/version=00002~/optimiser/state.safetensors", halve=True),
)


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not(
    server: ForkServer, reference: Reference, tmp_path: Path
) -> None:
    outcome = play(Case("several", KILLS), server, tmp_path, reference, ITERATIONS)
    assert not outcome.lost
    assert not outcome.differing
    assert outcome.struck == [kill.label for kill in KILLS]
    attempts = Database(Workspace(tmp_path / "workspace")).query(
        "SELECT iteration, stage, status FROM stages WHERE run = $run AND status NOT IN ('done', 'stale')", {"run": RUN}
    )
    assert {row["status"] for row in attempts.to_pylist()} == {"interrupted"}


RANK_STAGES = (
    ("teacher@1", signal.SIGKILL),
    ("update@1", signal.SIGTERM),
    ("teacher@2", signal.SIGINT),
    ("update@2", signal.SIGKILL),
)
"""The stages that ranks work for, and what stops the run in the middle of each; a resumed run starts its ranks anew."""


def halfway(reference: Reference, stage: str, number: signal.Signals) -> Kill:
    """Return a kill after half of the seconds that a stage took in the uninterrupted run."""
    at_s = {event.name: event.at_s for event in reference.trace}
    return kill(f"{stage} works", number, delay_s=(at_s[f"{stage} worked"] - at_s[f"{stage} works"]) / 2)


@pytest.mark.long
def test_a_run_of_two_ranks_that_is_killed_again_and_again_ends_as_if_it_had_not(
    server: ForkServer, tmp_path: Path
) -> None:
    reference = play_reference(server, tmp_path / "reference", ITERATIONS, ranks=2)
    kills = tuple(halfway(reference, stage, number) for stage, number in RANK_STAGES)
    renamed = kill("update@1 renamed artifacts/run=killed/iteration=00001/stage=update/stage.json")
    case = Case("ranks", (*kills[:2], renamed, *kills[2:]))
    outcome = play(case, server, tmp_path / "case", reference, ITERATIONS)
    assert not outcome.lost
    assert not outcome.differing
    assert outcome.struck == [kill.label for kill in case.kills]


def at(reference: Reference, pattern: str, number: signal.Signals = signal.SIGKILL, halve: bool = False) -> Kill:
    """Return a kill at the first event of the uninterrupted run that matches; names of files have hashes."""
    return kill(next(each.name for each in reference.trace if re.fullmatch(pattern, each.name)), number, halve=halve)


RESAMPLE = ("grpo.filter=resample", "grpo.resample_rounds=2")


@pytest.mark.long
def test_a_run_that_draws_further_questions_ends_as_if_it_had_not_been_killed(
    server: ForkServer, tmp_path: Path
) -> None:
    reference = play_reference(server, tmp_path / "reference", ITERATIONS, more=RESAMPLE)
    replacements = r"artifacts/run=killed/iteration=\d+/stage=sample/partial-replacements"
    kills = (
        at(reference, rf"sample@1 sync {replacements}-1-00000.*", halve=True),
        halfway(reference, "update@1", signal.SIGTERM),
        at(reference, rf"sample@2 renamed {replacements}-1-00000.*"),
        at(reference, rf"sample@2 rename {replacements}-2-00000.*", signal.SIGINT),
        at(reference, r"score@2 renamed .*/stage\.json"),
        at(reference, r"update@2 trains"),
    )
    outcome = play(Case("resample", kills), server, tmp_path / "case", reference, ITERATIONS)
    assert not outcome.lost
    assert not outcome.differing
    assert outcome.struck == [kill.label for kill in kills]


# The first update raises dev EM, the second lowers it; what goes on from version 1 hardly moves (test_alarms.py).
ROLLBACK = (
    "data.questions_per_iteration=4",
    "rollout.group_size=4",
    "rollout.questions_per_batch=4",
    "rollout.max_searches=3",
    "rollout.max_new_tokens=40",
    "update.learning_rate=3e-3",
    "distillation.enabled=false",
    "evaluation.every=1",
    "evaluation.num_questions=12",
    "storage.keep_checkpoints=10",
    "alarms.em_fall=1.2",
    "alarms.on_alarm=rollback",
    "alarms.rollback_learning_rate=0.001",
)
FORK = f"{RUN}-rollback-1"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_is_rolled_back_ends_as_if_it_had_not_been_killed(server: ForkServer, tmp_path: Path) -> None:
    """Killed before its alarm, between the alarm and the fork, while the fork is made, and in the fork."""
    reference = play_reference(server, tmp_path / "reference", ITERATIONS, more=ROLLBACK)
    kills = (
        halfway(reference, "update@2", signal.SIGKILL),
        at(reference, r"evaluate@2 renamed .*/stage\.json"),
        at(reference, r"after evaluate@2 renamed artifacts/run=killed/run\.json"),
        at(reference, rf"after evaluate@2 rename checkpoints/run={FORK}/version=00001"),
        at(reference, rf"after evaluate@2 renamed artifacts/run={FORK}/run\.json"),
        halfway(reference, f"sample@2 of {FORK}", signal.SIGTERM),
        at(reference, rf"update@2 of {FORK} sync checkpoints/run={FORK}/.*/model\.safetensors", halve=True),
    )
    outcome = play(Case("rollback", kills), server, tmp_path / "case", reference, ITERATIONS)
    assert not outcome.lost
    assert not outcome.differing
    assert outcome.struck == [kill.label for kill in kills]
    runs = Database(Workspace(tmp_path / "case" / "workspace")).query("SELECT run, status FROM runs ORDER BY run")
    assert runs.to_pylist() == [{"run": RUN, "status": "failed"}, {"run": FORK, "status": "done"}]


def test_the_comparison_sees_a_changed_byte_a_changed_row_and_a_file_too_many(
    reference: Reference, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(reference.workspace, workspace)
    assert differences(snapshot(workspace), reference.snapshot) == []
    weights = workspace / "checkpoints" / f"run={RUN}" / "version=00002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (weights.parent / ".model.safetensors.1.01234567.tmp").write_bytes(b"")
    with Database(Workspace(workspace)).transaction() as connection:
        connection.execute(
            "UPDATE rollouts SET answer = 'other' WHERE rollout_id = (SELECT min(rollout_id) FROM rollouts)"
        )
    found = differences(snapshot(workspace), reference.snapshot)
    assert [line.partition(":")[0].partition(" differs")[0] for line in found] == [
        "a temporary file",
        "model.safetensors",
        "table rollouts",
    ]


def test_work_that_is_done_again_is_seen(reference: Reference) -> None:
    done = finished_work(reference.workspace)
    assert {name: sum(kind == name for kind, *_ in done) for name in ("sample", "update")} == {"sample": 4, "update": 2}
    assert len(done_again(done, reference.trace)) == 6
    forks = [Event(event.at_s, event.name.replace("@2", "@2 of killed-rollback-1")) for event in reference.trace]
    assert len(done_again(done, forks)) == 3, "what another run did is no work of this one"
    assert len(done_again({(kind, "killed-rollback-1", *rest) for kind, _, *rest in done}, forks)) == 3
    assert done_again(set(), reference.trace) == []


def test_two_runs_share_a_workspace_at_the_same_time(server: ForkServer, reference: Reference, tmp_path: Path) -> None:
    for name in ("corpora", "indexes"):
        shutil.copytree(reference.workspace / name, tmp_path / "workspace" / name)
    names = ["left", "right"]
    both = server.run_together([train_command(1, run=name) for name in names], tmp_path)
    assert [ended.code for ended in both] == [0, 0], [ended.output for ended in both]
    database = Database(Workspace(tmp_path / "workspace"))
    query = "SELECT iteration, stage, output_hash FROM stages WHERE run = $run AND status = 'done' ORDER BY started_at"
    left, right = (database.query(query, {"run": name}).to_pylist() for name in names)
    assert left == right
    assert len(left) == 7
    overlap = "SELECT max(started_at) < min(finished_at) FROM (SELECT run, min(started_at) AS started_at, "
    overlap += "max(finished_at) AS finished_at FROM stages GROUP BY run)"
    (at_the_same_time,) = database.query(overlap).to_pydict().values()
    assert at_the_same_time == [True]


def test_a_run_of_a_machine_that_fell_silent_is_taken_over_by_a_person(
    server: ForkServer, reference: Reference, tmp_path: Path
) -> None:
    shutil.copytree(reference.workspace, tmp_path / "workspace")
    workspace = Workspace(tmp_path / "workspace")
    with RunLock(workspace, RUN) as holder:
        pass
    gone = {"host": "elsewhere", "pid": 4, "heartbeat_at": holder.heartbeat_at - timedelta(hours=1)}
    workspace.lock(RUN).write_text(holder.model_copy(update=gone).model_dump_json(), encoding="utf-8")
    refused = server.run(RESUME, tmp_path)
    assert refused.code == 2
    assert "left by process 4 on elsewhere, silent since " in refused.output
    assert f"sdsearch resume {RUN} --take-over" in refused.output
    taken = server.run([*RESUME, "--take-over"], tmp_path)
    assert taken.code == 0, taken.output
    assert "taken over from process 4 on elsewhere" in taken.output
