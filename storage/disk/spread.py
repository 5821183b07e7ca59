"""Named tensors over several safetensors files with an index, laid out as Hugging Face does: nothing here is a pickle.

A file is written a tensor at a time and hashed meanwhile, so that no more than a tensor is in memory. Its bytes depend
on the tensors alone: names stand in order in the header. torch is imported on use.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from storage.disk.files import failures_named
from storage.errors import DamagedArtifactError

if TYPE_CHECKING:
    from torch import Tensor

_TYPES: Final = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
    "torch.int64": "I64",
}
"""What a header calls torch's types."""
_ALIGNED_BYTES: Final = 8
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")


class TensorType(NamedTuple):
    """What a file's header tells of a tensor."""

    dtype: Any  # torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def part_path(path: Path, number: int, num_parts: int) -> Path:
    """Return the file of a part, counted from 0; `path` itself where it is the only one."""
    return path if num_parts == 1 else path.with_name(f"{path.stem}-{number + 1:05d}-of-{num_parts:05d}{path.suffix}")


def index_path(path: Path) -> Path:
    """Return the index of the parts of `path`."""
    return path.with_name(f"{path.name}.index.json")


def is_stored(path: Path) -> bool:
    """Return whether tensors are kept under this path, in one file or in parts."""
    return path.is_file() or index_path(path).is_file()


def spread(types: Mapping[str, TensorType], num_parts: int) -> list[list[str]]:
    """Return names for at most so many parts of about equal bytes, the largest tensors placed first; none is empty."""
    parts: list[list[str]] = [[] for _ in range(num_parts)]
    filled = [0] * num_parts
    for name in sorted(types, key=lambda name: (-types[name].num_bytes, name)):
        lightest = min(range(num_parts), key=lambda number: (filled[number], number))
        parts[lightest].append(name)
        filled[lightest] += types[name].num_bytes
    return [sorted(part) for part in parts if part]


def index_bytes(path: Path, types: Mapping[str, TensorType], parts: list[list[str]]) -> bytes:
    """Return the content of the index: which part has which tensor."""
    files = {name: part_path(path, number, len(parts)).name for number, part in enumerate(parts) for name in part}
    total = sum(of.num_bytes for of in types.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


class TensorFile:
    """A context manager that writes one safetensors file; the tensors are added in the order of their names.

    Raises WriteFailedError when the system refuses.
    """

    def __init__(self, path: Path, types: Mapping[str, TensorType]) -> None:
        self._path = path
        self._types = dict(sorted(types.items()))
        self._left = list(self._types)
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hash (hex) of the bytes so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> TensorFile:
        with failures_named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        self._hashing = ThreadPoolExecutor(1)
        self._write(self._header())
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor, which lies in the CPU's memory without gaps; ValueError when it is not that one."""
        import torch

        expected = self._left.pop(0) if self._left else None
        if name != expected or (tensor.dtype, tuple(tensor.shape)) != self._types[name]:
            raise ValueError(f"{self._path.name}: {name} is not the tensor that comes next, which is {expected}")
        self._write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hashing.shutdown()
        with failures_named(self._path):
            self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{self._path.name} lacks {len(self._left)} tensors, such as {self._left[0]}")

    def _write(self, content: Any) -> None:
        hashed = self._hashing.submit(self._digest.update, content)  # Without Python's lock: beside the writing.
        with failures_named(self._path):
            self._file.write(content)
        hashed.result()

    def _header(self) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, of in self._types.items():
            end = offset + of.num_bytes
            header[name] = {"dtype": _TYPES[str(of.dtype)], "shape": list(of.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNED_BYTES)
        return len(text).to_bytes(8, "little") + text


class StoredTensors:
    """Tensors of a file or of parts, read one at a time or by rows; DamagedArtifactError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Any] = {}
        self._open: dict[Path, Any] = {}
        for part in part_files(path):
            with _readable(part):
                self._files |= dict.fromkeys(self._opened(part).keys(), part)

    @property
    def names(self) -> list[str]:
        """The tensors' names, in order."""
        return sorted(self._files)

    def num_dims(self, name: str) -> int:
        """Return how many dimensions a tensor has."""
        with _readable(self._files[name]):
            return len(self._opened(self._files[name]).get_slice(name).get_shape())

    def rows(self, name: str, rows: slice) -> Tensor:
        """Read some rows (the first dimension) of a tensor."""
        with _readable(self._files[name]):
            found: Tensor = self._opened(self._files[name]).get_slice(name)[rows]
        return found

    def whole(self, name: str) -> Tensor:
        """Read a tensor."""
        with _readable(self._files[name]):
            found: Tensor = self._opened(self._files[name]).get_tensor(name)
        return found

    def _opened(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]


def part_files(path: Path) -> list[Path]:
    """Return the files that hold the tensors of `path`: itself, or the parts that its index lists.

    Raises DamagedArtifactError for an index that cannot be read, or that lists other files than parts beside it.
    """
    index = index_path(path)
    if path.is_file() or not index.is_file():
        return [path]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        foreign = [name for name in names if not _PART.fullmatch(name)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedArtifactError(
            f"{index} is no index of safetensors files; run the stage that wrote it again"
        ) from error
    if foreign:
        raise DamagedArtifactError(f"{index} lists {foreign[0]!r}, which is no safetensors file beside it")
    return [path.with_name(name) for name in names]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise DamagedArtifactError(
            f"{path} cannot be read as safetensors ({error}); run the stage that wrote it again"
        ) from error
