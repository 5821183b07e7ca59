"""Files appear whole or not at all, and damage is noticed and named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from schemas.records.ledger import ArtifactRef, StageKey
from schemas.records.passage import Passage
from schemas.records.rollout import Group
from storage.disk.files import sha256_file, write_atomic
from storage.errors import DamagedArtifactError, RecordMismatchError, WorkspaceError
from storage.runs.artifacts import ArtifactStore
from storage.workspace import Workspace, validate_run_name
from tests.support.records import make_groups

KEY = StageKey(run="first", iteration=3, stage="sample")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(Workspace.open(tmp_path / "workspace"))


def write(store: ArtifactStore, attempt: int) -> ArtifactRef:
    return store.write_tensors(KEY, "report", {"attempt": torch.tensor(attempt)})


def read(store: ArtifactStore, ref: ArtifactRef) -> int:
    return int(store.read_tensors(ref)["attempt"])


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def all_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_workspace_is_made_with_its_parents_and_holds_nothing_yet(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "a" / "b")
    assert workspace.root.is_dir()
    assert list(workspace.root.iterdir()) == []
    assert Workspace.open(str(tmp_path / "a" / "b")) == workspace


def test_a_workspace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("x")
    for root in (in_the_way, in_the_way / "below", Path("/proc/sdsearch")):
        with pytest.raises(WorkspaceError, match=r"cannot be written .*SDSEARCH_HOME"):
            Workspace.open(root)


@pytest.mark.parametrize("name", ["first", "A.b_c-9", "_x", "a" * 80])
def test_run_names_that_may_become_paths(name: str) -> None:
    assert validate_run_name(name) == name


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "../x", "a b", "a\n", "a" * 81, "é", "a\\b", "a=b*"])
def test_run_names_that_may_not_become_paths(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="1 to 80 ASCII letters"):
        Workspace.open(tmp_path).checkpoint(name, 1)


def test_paths_sort_and_say_what_they_hold(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    assert workspace.relative(workspace.stage_folder(KEY)) == "artifacts/run=first/iteration=00003/stage=sample"
    assert workspace.relative(workspace.checkpoint("first", 12)) == "checkpoints/run=first/version=00012"
    assert workspace.resolve("a/b.txt") == tmp_path / "a" / "b.txt"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", ""])
def test_references_do_not_lead_out_of_the_workspace(path: str, store: ArtifactStore) -> None:
    with pytest.raises(WorkspaceError, match="leads out of the workspace"):
        store.verify(ArtifactRef(path=path, sha256="", size_bytes=0))


def test_records_come_back_and_the_reference_describes_the_file(store: ArtifactStore) -> None:
    groups = make_groups()
    ref = store.write_records(KEY, "groups", Group, groups)
    assert ref.path == "artifacts/run=first/iteration=00003/stage=sample/groups.parquet"
    assert ref.size_bytes == store.path(ref).stat().st_size
    assert ref.sha256 == sha256_file(store.path(ref))
    assert store.read_records(ref, Group) == groups
    store.verify(ref)


def test_equal_records_give_equal_files(store: ArtifactStore) -> None:
    other = KEY.model_copy(update={"run": "second"})
    first = store.write_records(KEY, "groups", Group, make_groups())
    second = store.write_records(other, "groups", Group, make_groups())
    assert first.sha256 == second.sha256
    assert first.path != second.path


def test_records_of_another_type_are_refused_by_file(store: ArtifactStore) -> None:
    ref = store.write_records(KEY, "passages", Passage, [Passage(id="1", title="t", text="x")])
    with pytest.raises(RecordMismatchError, match=r"passages\.parquet: the table does not hold Group"):
        store.read_records(ref, Group)


def test_tensors_come_back_bit_for_bit_also_when_they_share_memory(store: ArtifactStore) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "whole": base,
        "row": base[1],
        "column": base[:, 2],
        "again": base,
        "half": torch.tensor([1.5, float("inf"), -0.0], dtype=torch.bfloat16),
        "ids": torch.tensor([2**40], dtype=torch.int64),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 5),
    }
    ref = store.write_tensors(KEY, "targets", tensors)
    back = store.read_tensors(ref)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_verify_names_the_file_that_is_altered_cut_or_missing(store: ArtifactStore) -> None:
    ref = write(store, 1)
    path = store.path(ref)
    flip_byte(path, 5)
    with pytest.raises(DamagedArtifactError, match=r"report\.safetensors is damaged: its sha256 is"):
        store.verify(ref)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedArtifactError, match=rf"damaged: it has {ref.size_bytes - 1} bytes"):
        store.verify(ref)
    path.unlink()
    with pytest.raises(DamagedArtifactError, match=r"report\.safetensors cannot be read \(No such file"):
        store.verify(ref)


def test_broken_files_are_named_when_they_are_read(store: ArtifactStore) -> None:
    records = store.write_records(KEY, "groups", Group, make_groups())
    tensors = store.write_tensors(KEY, "targets", {"a": torch.zeros(3)})
    for ref in (records, tensors):
        store.path(ref).write_bytes(b"{broken")
    with pytest.raises(DamagedArtifactError, match=r"groups\.parquet cannot be read as parquet"):
        store.read_records(records, Group)
    with pytest.raises(DamagedArtifactError, match=r"targets\.safetensors cannot be read as safetensors"):
        store.read_tensors(tensors)


def test_a_failed_write_leaves_the_former_file_and_nothing_else(store: ArtifactStore) -> None:
    ref = write(store, 1)
    folder = store.path(ref).parent

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomic(store.path(ref), fail, store.workspace.root)
    assert all_files(folder) == ["report.safetensors"]
    assert read(store, ref) == 1


def test_a_second_attempt_replaces_the_file_while_a_reader_keeps_the_former_one(store: ArtifactStore) -> None:
    ref = write(store, 1)
    with store.path(ref).open("rb") as reader:
        again = write(store, 2)
        assert hashlib.sha256(reader.read()).hexdigest() == ref.sha256
    assert again.sha256 != ref.sha256
    assert read(store, again) == 2


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.workspace.stage_folder(KEY).mkdir(parents=True)
    events: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append(("rename", target.name))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write(store, 1)
    (_, written), *rest = events
    assert written.startswith(".report.safetensors.")
    assert rest == [("rename", "report.safetensors"), ("fsync", "stage=sample")]


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", ""])
def test_file_names_do_not_lead_elsewhere(name: str, store: ArtifactStore) -> None:
    with pytest.raises(WorkspaceError, match="file name"):
        store.write_tensors(KEY, name, {})
