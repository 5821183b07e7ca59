"""Whole runs of a second, in which something breaks: settings, training, and when to break it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.settings.root import Settings
from sdsearch.world import load_passages, load_questions
from tests.support.builders import make_model, make_tokenizer

RUN = "run"
_QUICK = (
    "iterations=2",
    "model.path={materials}/model",
    "model.torch_threads=1",
    "data.questions={materials}/{{split}}.jsonl",
    "data.questions_per_iteration=1",
    "retrieval.corpus={materials}/corpus.jsonl",
    "rollout.group_size=2",
    "rollout.questions_per_batch=1",
    "rollout.max_searches=2",
    "rollout.max_new_tokens=6",
    # A random policy writes no queries: all that it says is distilled.
    "distillation.positions=completion",
    "evaluation.num_questions=1",
    "evaluation.every=2",
    'evaluation.modes=["greedy"]',
    "storage.keep_checkpoints=2",
)


def quick(*overrides: str) -> Settings:
    """Settings of a run of two iterations with a random model of two layers and a corpus of a few passages."""
    return load_settings("tiny", [*(line.format(materials=_materials()) for line in _QUICK), *overrides])


def train(
    workspace: Path, settings: Settings | None = None, at_stage: Callable[[StageKey], None] | None = None
) -> None:
    """Train in a plain loop; without settings a stored run goes on. `at_stage` is called when a stage starts."""
    reporter = _Watching(at_stage) if at_stage else SilentReporter()
    train_plain(settings, RUN, workspace, reporter, resume=settings is None)


class _Watching(SilentReporter):
    def __init__(self, at_stage: Callable[[StageKey], None]) -> None:
        self._at_stage = at_stage

    def stage_started(self, key: StageKey) -> None:
        self._at_stage(key)


@cache
def _materials() -> Path:
    """A folder with model, questions and corpus, all of them small."""
    folder = Path(mkdtemp())
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for split in ("train", "dev"):
        questions = itertools.islice(load_questions(split), 8)
        _write_rows(
            folder / f"{split}.jsonl", (q.model_dump(include={"id", "question", "golden_answers"}) for q in questions)
        )
    passages = itertools.islice(load_passages(), 50)
    _write_rows(folder / "corpus.jsonl", ({"id": p.id, "contents": p.contents} for p in passages))
    return folder


def _write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
