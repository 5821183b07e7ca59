"""A few kills of the matrix: what was finished stays, nothing is done twice, and the end is bit for bit the same."""

from __future__ import annotations

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
from tests.crash.events import Strike
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
