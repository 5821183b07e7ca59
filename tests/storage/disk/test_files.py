"""Files and folders that are there whole or not at all, and what is left of those that were cut off."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from storage.disk.files import (
    locked,
    make_folder,
    remove_leftovers,
    sha256_file,
    temporary_name,
    write_atomic,
    write_json_atomic,
)
from storage.disk.manifest import write_folder_atomic
from storage.retrieval.indexes import building_alone, remove_unfinished
from storage.workspace import Workspace


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced and renamed, in order."""
    seen: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(descriptor: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    for name, call in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(os, name, lambda a, b, call=call: (seen.append(("rename", Path(b).name)), call(a, b))[1])
    return seen


def test_a_file_is_synced_before_its_rename_and_its_folder_after(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    write_atomic(tmp_path / "a.json", lambda path: path.write_text("1") and None, tmp_path)
    (content, name), renamed, folder = calls
    assert (content, name.startswith(".a.json.")) == ("sync", True)
    assert (renamed, folder) == (("rename", "a.json"), ("sync", tmp_path.name))


def test_a_folder_is_synced_with_all_that_is_in_it_before_its_rename(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_text("1")

    write_folder_atomic(tmp_path / "version=1", fill, tmp_path)
    place = calls.index(("rename", "version=1"))
    before = {name for verb, name in calls[:place] if verb == "sync"}
    assert {"inner", "weights", "manifest.json"} <= before
    assert calls[place + 1] == ("sync", tmp_path.name)


def test_a_new_folder_is_durable_in_its_parent(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert {name for _, name in calls} == {tmp_path.name, "a"}


def test_a_name_can_hold_the_hash_of_what_was_written(tmp_path: Path) -> None:
    ref = write_atomic(tmp_path / "piece.{sha256}.json", lambda path: path.write_text("[1]") and None, tmp_path)
    assert ref.path == f"piece.{ref.sha256}.json"
    assert sha256_file(tmp_path / ref.path) == ref.sha256


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    kept = write_json_atomic(tmp_path / "artifacts" / "a.json", 1, tmp_path)
    file, folder = tmp_path / "artifacts" / temporary_name("a.json"), tmp_path / temporary_name("version=1")
    file.write_text("half")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_text("half")
    (tmp_path / ".hidden").write_text("a person's")
    assert set(remove_leftovers(tmp_path)) == {file, folder}
    assert not file.exists()
    assert not folder.exists()
    assert (tmp_path / kept.path).exists()
    assert (tmp_path / ".hidden").exists()


def test_one_process_at_a_time_builds_an_index(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    building = workspace.indexes / temporary_name("0123")
    done: list[float] = []

    def build() -> None:
        with building_alone(workspace):
            done.append(time.monotonic())

    with building_alone(workspace):
        make_folder(building)
        other = threading.Thread(target=build)
        other.start()
        remove_unfinished(workspace)
        assert building.exists(), "it is being built"
        with locked(workspace.index_lock, wait=False) as is_held:
            assert not is_held
        time.sleep(0.1)
        assert not done
    other.join()
    assert len(done) == 1
    assert not building.exists(), "whoever built it is gone"
