"""Models and tokenizers from folders and hub names: safetensors alone, and no code of theirs unless it is trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file, logging

from schemas.errors import UserError, library_errors

_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def open_tokenizer(path: str, section: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub name; `section` of the settings named it.

    Raises UserError when there is none, or when it would need code that is not trusted.
    """
    with _readable("tokenizer", path, section):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def open_config(path: str, section: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the configuration of a model folder or hub name; UserError when there is none that can be read."""
    with _readable("model", path, section):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def open_model(auto_class: Any, path: str, section: str, *, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    """Return the model of a folder or hub name, read from safetensors: pickled weights are never opened.

    Raises UserError when there is none, or when it would need code that is not trusted.
    """
    with _readable("model", path, section):
        _check_shards(path)
        return auto_class.from_pretrained(path, use_safetensors=True, trust_remote_code=trust_remote_code, **options)


def _check_shards(path: str) -> None:
    """Refuse an index that lists other files than safetensors beside it: transformers would unpickle them."""
    index = cached_file(
        path,
        SAFE_WEIGHTS_INDEX_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if index is None:
        return
    description = json.loads(Path(index).read_text(encoding="utf-8"))
    weight_map = description.get("weight_map") if isinstance(description, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} has no weight_map")
    foreign = sorted({name for name in weight_map.values() if not _SHARD.fullmatch(str(name))})
    if foreign:
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} lists {foreign[0]!r}, which is no safetensors file beside it")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of a notebook while weights are loaded."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _readable(what: str, path: str, section: str) -> Iterator[None]:
    """Turn whatever stands in the way of reading a model or tokenizer into a UserError that says what to do."""
    remedy = (
        f"point {section}.path at a folder that save_pretrained wrote for both model and tokenizer, or at a hub name "
        "that this machine can reach"
    )
    folder = Path(path)
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern)) if folder.is_dir() else []
    if what == "model" and pickled:
        code = f"{pickled[0]} is a pickle, which could run code and is never opened: convert it to safetensors"
        remedy = f"{code}, or {remedy}"
    try:
        with library_errors(f"no {what} could be read from '{path}'", remedy):
            yield
    except UserError as error:
        if "trust_remote_code" not in str(error.__cause__):
            raise
        raise UserError(
            f"the {what} of '{path}' comes with its own Python code, which is not run; read that code, and set "
            f"{section}.trust_remote_code = true if you trust it, or choose another {section}.path"
        ) from error
