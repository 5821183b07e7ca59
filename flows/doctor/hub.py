"""Which files of a model or a data set lie on this disk: in a folder, or in the cache of the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.settings.model_folder import local_folder

_WEIGHTS = "model.safetensors"


_INDEX = "model.safetensors.index.json"


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class ModelFiles(NamedTuple):
    """What of a model folder or hub name is on this machine."""

    config: Mapping[str, Any] | None
    missing: tuple[str, ...]
    weights_bytes: int


def model_files(path: str) -> ModelFiles:
    """Look for a model's configuration, tokenizer and safetensors in its folder or in the hub's cache."""
    folder = local_folder(path)
    found = _in_folder(folder) if folder.is_dir() else _in_hub_cache(path)
    config, index = found.get("config.json"), found.get(_INDEX)
    shards = sorted(set(_json(index).get("weight_map", {}).values())) if index else [_WEIGHTS]
    if index and not folder.is_dir():
        found |= _cached(path, shards)
    weights = [found[name] for name in shards if name in found]
    missing = [] if config else ["config.json"]
    missing += [] if any(name in found for name in _TOKENIZERS) else ["tokenizer"]
    missing += [name for name in shards if name not in found]
    return ModelFiles(_json(config) if config else None, tuple(missing), sum(p.stat().st_size for p in weights))


def hub_data(source: str, dataset: str, split: str) -> Path | None:
    """Return where a split of a hub data set lies in the caches, None when it does not."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    owner, _, name = source.partition("/")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    raw = Path(HF_HUB_CACHE) / f"datasets--{owner}--{name}" / "snapshots"
    letters = name.replace("_", "").replace("-", "").lower()
    kept = [path for path in prepared.glob(f"{owner}___*") if path.name.partition("___")[2].replace("_", "") == letters]
    for root in kept:
        if any((root / dataset).rglob(f"*-{split}*.arrow")):
            return root / dataset
    return next(iter(raw.glob(f"*/{dataset}/{split}.jsonl")), None)


def _in_folder(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.is_file()}


def _in_hub_cache(name: str) -> dict[str, Path]:
    return _cached(name, ["config.json", _INDEX, _WEIGHTS, *_TOKENIZERS])


def _cached(name: str, wanted: list[str]) -> dict[str, Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = {file: try_to_load_from_cache(name, file) for file in wanted}
    except HFValidationError:  # A path that is no folder and no hub name.
        return {}
    return {file: Path(path) for file, path in found.items() if isinstance(path, str)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
