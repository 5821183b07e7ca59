"""Tensors over several safetensors files: the library reads what is written here, a tensor at a time or by rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from storage.disk.files import sha256_file
from storage.disk.spread import (
    StoredTensors,
    TensorFile,
    TensorType,
    index_bytes,
    index_path,
    is_stored,
    part_path,
    spread,
)
from storage.disk.tensors import load_tensors
from storage.errors import DamagedArtifactError, WriteFailedError

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "c.step": torch.tensor(3.0),
    "d.bias": torch.ones(5),
}
TYPES = {name: TensorType(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}


def write(path: Path, names: list[str]) -> str:
    with TensorFile(path, {name: TYPES[name] for name in names}) as file:
        for name in sorted(names):
            file.add(name, TENSORS[name])
    return file.sha256


def write_parts(path: Path, num_parts: int) -> list[list[str]]:
    parts = spread(TYPES, num_parts)
    for number, names in enumerate(parts):
        write(part_path(path, number, len(parts)), names)
    index_path(path).write_bytes(index_bytes(path, TYPES, parts))
    return parts


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_file_is_what_safetensors_reads_and_its_hash_is_known_once_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.safetensors"
    assert write(path, list(TENSORS)) == sha256_file(path)
    assert same(load_file(path), TENSORS)
    assert write(tmp_path / "again.safetensors", list(reversed(TENSORS))) == sha256_file(path)


@pytest.mark.parametrize("num_parts", [2, 3, 9])
def test_parts_with_their_index_are_read_as_one(num_parts: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert not is_stored(path)
    parts = write_parts(path, num_parts)
    assert is_stored(path)
    assert not path.exists()
    assert len(parts) == min(num_parts, len(TENSORS))
    assert sorted(name for part in parts for name in part) == sorted(TENSORS)
    index = json.loads(index_path(path).read_text())
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())
    assert same(load_tensors(path), TENSORS)
    stored = StoredTensors(path)
    assert stored.names == sorted(TENSORS)
    assert torch.equal(stored.rows("b.weight", slice(1, 3)), TENSORS["b.weight"][1:])
    assert stored.rows("b.weight", slice(3, 3)).shape == (0, 4)
    assert torch.equal(stored.whole("c.step"), TENSORS["c.step"])
    assert [stored.num_dims(name) for name in ("b.weight", "c.step")] == [2, 0]


def test_the_largest_tensors_are_spread_first() -> None:
    types = {f"t{size}": TensorType(torch.float32, (size,)) for size in (8, 7, 6, 5, 4)}
    assert spread(types, 2) == [["t4", "t5", "t8"], ["t6", "t7"]]


def test_a_file_lacks_no_tensor_and_takes_them_in_order(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(ValueError, match="is not the tensor that comes next"), TensorFile(path, TYPES) as file:
        file.add("b.weight", TENSORS["b.weight"])
    with pytest.raises(ValueError, match=r"lacks 3 tensors, such as b\.weight"), TensorFile(path, TYPES) as file:
        file.add("a.weight", TENSORS["a.weight"])
    with pytest.raises(ValueError, match="is not the tensor"), TensorFile(path, TYPES) as file:
        file.add("a.weight", TENSORS["a.weight"].float())


def test_what_the_system_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteFailedError, match="cannot be written"), TensorFile(tmp_path / "file" / "f", TYPES):
        pass


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../b.bin"}}']
)
def test_an_index_that_is_none_or_names_other_files_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    index_path(path).write_text(content)
    with pytest.raises(DamagedArtifactError, match=r"model\.safetensors\.index\.json"):
        load_tensors(path)


def test_a_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_parts(path, 2)
    part_path(path, 1, 2).write_bytes(b"no tensors")
    for read in (load_tensors, StoredTensors):
        with pytest.raises(DamagedArtifactError, match=r"model-00002-of-00002\.safetensors cannot be read"):
            read(path)


def test_the_writer_makes_no_copy_of_the_tensors(tmp_path: Path) -> None:
    types = {f"t{number}": TensorType(torch.float32, (1 << 18,)) for number in range(8)}
    tracemalloc.start()
    with TensorFile(tmp_path / "large.safetensors", types) as file:
        for name in types:
            file.add(name, torch.zeros(1 << 18))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 18
