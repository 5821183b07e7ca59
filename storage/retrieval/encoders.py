"""An encoder on disk: a JSON object and named arrays, none of them pickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.disk.files import write_json_atomic

_JSON: Final = "encoder.json"
_ARRAYS: Final = "encoder.npz"
# What damaged files of an encoder raise when they are read.
UNREADABLE: Final = (OSError, ValueError, RuntimeError, zipfile.BadZipFile)


class EncoderState(NamedTuple):
    """An encoder as plain values: a JSON object and named arrays (none of objects: nothing is pickled)."""

    description: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def write_encoder(folder: Path, encoder: EncoderState) -> None:
    """Write `encoder.json` and `encoder.npz`; ValueError for arrays that would be pickled."""
    pickled = [name for name, array in encoder.arrays.items() if array.dtype.hasobject]
    if pickled:
        raise ValueError(f"encoder arrays {', '.join(pickled)} hold Python objects, which would be pickled")
    write_json_atomic(folder / _JSON, dict(encoder.description), folder)
    with (folder / _ARRAYS).open("wb") as file:
        np.savez(file, allow_pickle=False, **encoder.arrays)


def read_encoder(folder: Path) -> EncoderState:
    """Return what `write_encoder` wrote; one of UNREADABLE for damaged files."""
    description = json.loads((folder / _JSON).read_text(encoding="utf-8"))
    with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
        return EncoderState(description, dict(arrays))
