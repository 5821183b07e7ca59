"""A small place to draw in: eight questions a split, forty passages, settings that train in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from flows.settings.model_folder import local_folder
from schemas.commands import value_text
from sdsearch.world import load_passages
from tests.support.question_files import flashrag_rows, world_questions, write_rows

NUM_QUESTIONS: Final = 8
_NUM_PASSAGES: Final = 40
_SETTINGS: Final = {
    "iterations": 1,
    "model.path": "mini",
    "model.torch_threads": 1,
    "data.questions_per_iteration": 2,
    "rollout.template": "compact",
    "rollout.group_size": 2,
    "rollout.max_searches": 1,
    "rollout.max_new_tokens": 40,
    "rollout.max_prompt_tokens": 256,
    "rollout.max_observation_tokens": 64,
    "distillation.alpha": 0.1,
    "distillation.warmup_iterations": 0,
    "update.learning_rate": 3e-4,
    "update.rollouts_per_step": 4,
    "evaluation.num_questions": 2,
    "retrieval.encoder.kind": "lexical",
    "retrieval.encoder.num_dimensions": 64,
}
_BARE: Final = {name: value for name, value in _SETTINGS.items() if not name.startswith("retrieval.encoder")}
_KINDS: Final = {
    "dense": _SETTINGS,
    "hybrid": _SETTINGS,
    "bm25": _BARE,
    "dense_neural": _BARE,
    "hybrid_neural": _BARE,
    "http": _BARE | {"retrieval.urls": ["http://127.0.0.1:9"], "retrieval.max_attempts": 1},
}


class Bench:
    """Files in a folder, and a settings file for each kind of retriever."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "dev"):
            write_rows(folder / f"{split}.jsonl", flashrag_rows(world_questions(split, NUM_QUESTIONS)))
        self.corpus = folder / "corpus.jsonl"
        rows = ({"id": passage.id, "contents": passage.contents} for passage in load_passages()[:_NUM_PASSAGES])
        self.corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for kind in _KINDS:
            self._write_settings(kind)

    def config(self, kind: str = "dense") -> str:
        """Return the path of the settings with one kind of retriever.

        `dense_neural` and `hybrid_neural` leave the encoder open; the server of `http` does not answer.
        """
        return str(self.folder / f"{kind}.toml")

    def model(self, name: str) -> Path:
        """Return a new copy of the mini policy's folder."""
        return Path(shutil.copytree(local_folder("mini"), self.folder / name, dirs_exist_ok=True))

    def _write_settings(self, kind: str) -> None:
        own = {"data.questions": f"{self.folder}/{{split}}.jsonl", "retrieval.kind": kind.partition("_")[0]}
        own |= {} if kind == "http" else {"retrieval.corpus": str(self.corpus)}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in (_KINDS[kind] | own).items()]
        Path(self.config(kind)).write_text("".join(lines), encoding="utf-8")


def setting(name: str, value: object) -> str:
    """Return the word that `--set` takes for a value."""
    return f"{name}={value_text(value)}"
