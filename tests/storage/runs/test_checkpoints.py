"""Checkpoints are complete or absent, exact, and free of pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from storage.disk.files import temporary_name
from storage.disk.tensors import load_tensors, save_tensors, tensors_sha256
from storage.errors import DamagedArtifactError
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path)


@pytest.fixture
def store(workspace: Workspace) -> CheckpointStore:
    return CheckpointStore(workspace)


def save_two_files(folder: Path, weight: float = 1.0) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "config.json").write_text("{}")
    save_tensors(folder / "optimiser.safetensors", {"weight": torch.full((4,), weight)})


def test_a_checkpoint_verifies_and_its_reference_covers_every_file(
    store: CheckpointStore, workspace: Workspace
) -> None:
    ref = store.write("first", 3, save_two_files)
    assert ref.path == "checkpoints/run=first/version=00003/manifest.json"
    assert store.verify("first", 3) == workspace.root / "checkpoints" / "run=first" / "version=00003"
    manifest = json.loads((store.path("first", 3) / "manifest.json").read_text())
    assert [entry["path"] for entry in manifest["files"]] == [
        "adapter/config.json",
        "optimiser.safetensors",
    ]
    ArtifactStore(workspace).verify(ref)
    assert store.write("second", 1, save_two_files).sha256 == ref.sha256
    assert store.write("second", 2, lambda folder: save_two_files(folder, 2.0)).sha256 != ref.sha256


@pytest.mark.parametrize("name", ["adapter/config.json", "optimiser.safetensors", "manifest.json"])
def test_one_flipped_byte_in_any_file_is_noticed(name: str, store: CheckpointStore, workspace: Workspace) -> None:
    ref = store.write("first", 3, save_two_files)
    path = store.path("first", 3) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedArtifactError, match=path.name):
        ArtifactStore(workspace).verify(ref)


@pytest.mark.parametrize("name", ["adapter/config.json", "manifest.json"])
def test_a_missing_file_is_named(name: str, store: CheckpointStore) -> None:
    store.write("first", 3, save_two_files)
    (store.path("first", 3) / name).unlink()
    with pytest.raises(DamagedArtifactError, match=rf"{Path(name).name} cannot be read"):
        store.verify("first", 3)


def test_a_file_that_the_manifest_does_not_list_is_refused(store: CheckpointStore) -> None:
    store.write("first", 3, save_two_files)
    (store.path("first", 3) / "adapter" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DamagedArtifactError, match=r"pytorch_model\.bin is not in manifest\.json"):
        store.verify("first", 3)


def test_an_absent_version_says_which_there_are(store: CheckpointStore) -> None:
    with pytest.raises(DamagedArtifactError, match=r"no checkpoint of version 7 \(it has: none\)"):
        store.verify("first", 7)
    store.write("first", 10, save_two_files)
    store.write("first", 2, save_two_files)
    assert store.versions("first") == [2, 10]
    with pytest.raises(DamagedArtifactError, match=r"it has: 2, 10"):
        store.verify("first", 7)


def test_a_failed_save_leaves_nothing_and_keeps_the_former_version(store: CheckpointStore) -> None:
    def fail(folder: Path) -> None:
        save_two_files(folder, 2.0)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.write("first", 3, fail)
    assert list(store.path("first", 3).parent.iterdir()) == []
    ref = store.write("first", 3, save_two_files)
    with pytest.raises(OSError, match="No space"):
        store.write("first", 3, fail)
    assert store.versions("first") == [3]
    ArtifactStore(store.workspace).verify(ref)


def test_an_equal_version_stays_in_place_and_another_one_replaces_it(store: CheckpointStore) -> None:
    first = store.write("first", 3, save_two_files)
    inode = store.path("first", 3).stat().st_ino
    assert store.write("first", 3, save_two_files) == first
    assert store.path("first", 3).stat().st_ino == inode
    other = store.write("first", 3, lambda folder: save_two_files(folder, 2.0))
    assert other.sha256 != first.sha256
    kept = load_tensors(store.verify("first", 3) / "optimiser.safetensors")
    assert torch.equal(kept["weight"], torch.full((4,), 2.0))
    assert [path.name for path in store.path("first", 3).parent.iterdir()] == ["version=00003"]


def test_a_damaged_version_is_replaced_by_the_same_content(store: CheckpointStore) -> None:
    ref = store.write("first", 3, save_two_files)
    (store.path("first", 3) / "adapter" / "config.json").write_text("garbage")
    assert store.write("first", 3, save_two_files) == ref
    store.verify("first", 3)


def test_what_an_interrupted_write_left_is_removed_and_never_counts(store: CheckpointStore) -> None:
    left = store.path("first", 3).with_name(temporary_name("version=00003"))
    other = store.path("first", 3).with_name(temporary_name("version=00004"))
    for folder in (left, other):
        folder.mkdir(parents=True)
        save_two_files(folder)
    assert store.versions("first") == []
    store.write("first", 3, save_two_files)
    assert not left.exists()
    assert other.exists()


def test_the_hash_of_tensors_sees_names_types_shapes_and_every_bit_but_not_the_order() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(1.0)}
    reference = tensors_sha256(tensors)
    assert tensors_sha256(dict(reversed(tensors.items()))) == reference
    assert tensors_sha256({**tensors, "a": torch.arange(12.0)[:6]}) == reference
    variants = [
        {**tensors, "a": torch.arange(6.0).reshape(2, 3)},
        {**tensors, "a": torch.arange(6.0).double()},
        {**tensors, "a": torch.nextafter(torch.arange(6.0), torch.tensor(9.0))},
        {**tensors, "b": torch.ones(2, dtype=torch.float16)},
        {"a": tensors["b"], "b": tensors["a"], "c": tensors["c"]},
        {name: tensors[name] for name in ("a", "b")},
        {**tensors, "c": torch.tensor([1.0])},
    ]
    hashes = {tensors_sha256(variant) for variant in variants}
    assert len(hashes) == len(variants)
    assert reference not in hashes
