"""The files that a policy starts from: where they lie, and whether they are still the same. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from schemas.errors import library_errors
from schemas.paths import folder_or_name

_READ_SUFFIXES: Final = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
_REVISION: Final = "revision"
_MINI_FOLDER: Final = Path(str(files("sdsearch.world") / "mini"))


def model_folder(path: str) -> str:
    """Return the folder or hub name of `model.path`; 'mini' is the shipped mini policy."""
    return str(_MINI_FOLDER) if path == "mini" else folder_or_name(path)


def model_hashes(path: str, hash_of: Callable[[Path], str]) -> dict[str, str]:
    """Return the sha256 (hex) of each file of a model folder that is read, by name; of a hub name, its revision here.

    Raises UserError for a file that cannot be read.
    """
    folder = Path(model_folder(path))
    if not folder.is_dir():
        return {_REVISION: _cached_revision(path)}
    with library_errors(f"model.path '{path}'", "make its files readable, or choose another model.path"):
        return {
            file.name: hash_of(file)
            for file in sorted(folder.iterdir())
            if file.suffix in _READ_SUFFIXES and file.is_file()
        }


def is_weights(name: str) -> bool:
    """True for a file of `model_hashes` that holds weights and nothing else."""
    return name.endswith(".safetensors")


def model_changes(kept: Mapping[str, str], now: Mapping[str, str], *, with_weights: bool) -> str:
    """Return which files of `model_hashes` are new, gone or another, empty for none."""
    names = [name for name in sorted({*kept, *now}) if with_weights or not is_weights(name)]
    return ", ".join(
        f"{name} is {'new' if name not in kept else 'gone' if name not in now else 'another'}"
        for name in names
        if kept.get(name) != now.get(name)
    )


def model_fingerprint(path: str, hashes: Mapping[str, str]) -> str:
    """Return what identifies the starting weights: a hash of a local folder's files, or the hub name."""
    if _REVISION in hashes:
        return f"hub:{path}"
    digest = hashlib.sha256()
    for name, sha256 in hashes.items():
        digest.update(name.encode() + b"\0" + bytes.fromhex(sha256))
    return digest.hexdigest()


def _cached_revision(name: str) -> str:
    """Return the commit of a hub model in the hub's cache, empty where the cache does not tell."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return ""
    return Path(found).parent.name if isinstance(found, str) else ""
