"""The folders below `answerability/`: how much of each data set can be answered from what is searched.

What decides it names the files: `dataset=…/split=…/HASH.json` and `HASH.parquet`, which has a row a question and is
written first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from schemas.base import hash_json
from schemas.names import is_name
from schemas.records.answerability import Answerability, QuestionAnswerability
from schemas.records.ledger import ArtifactRef
from storage.disk.files import write_atomic, write_json_atomic
from storage.errors import DamagedArtifactError, WorkspaceError
from storage.runs.artifacts import ArtifactStore, write_parquet


class AnswerabilityStore:
    """Writes and finds what `sdsearch data answerability` has counted."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._workspace = artifacts.workspace

    def write(self, counted: Answerability, questions: Sequence[QuestionAnswerability]) -> Answerability:
        """Make a count durable, in place of an earlier one of the same; return it with its file.

        WriteFailedError when it cannot be written.
        """
        root, stem = self._workspace.root, self._stem(counted)
        file = write_atomic(
            stem.with_suffix(".parquet"), lambda path: write_parquet(path, QuestionAnswerability, questions), root
        )
        counted = counted.model_copy(update={"file": file})
        write_json_atomic(stem.with_suffix(".json"), counted.model_dump(mode="json"), root)
        return counted

    def of_set(self, dataset: str, split: str) -> Iterator[Answerability]:
        """Yield what was counted of a split; a file that cannot be read counts as none, it can be counted again."""
        for path in sorted(self._folder(dataset, split).glob("*.json")):
            try:
                yield Answerability.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue

    def read(self, counted: Answerability) -> list[QuestionAnswerability]:
        """Return the rows of a count; DamagedArtifactError when its file is missing or altered."""
        try:
            self._artifacts.verify(counted.file)
            return self._artifacts.read_records(counted.file, QuestionAnswerability)
        except DamagedArtifactError as error:
            name = f"{counted.dataset}:{counted.split}"
            raise DamagedArtifactError(
                f"answerability of {name}: {error}; sdsearch data answerability counts it again"
            ) from error

    def _stem(self, counted: Answerability) -> Path:
        decided = [counted.index_hash, counted.corpus_sha256, counted.num_passages, counted.questions_sha256]
        return self._folder(counted.dataset, counted.split) / hash_json(decided)[:16]

    def _folder(self, dataset: str, split: str) -> Path:
        for name in (dataset, split):
            if not is_name(name):
                raise WorkspaceError(f"data set or split {name[:100]!r} cannot be used as the name of a folder")
        return self._workspace.answerability / f"dataset={dataset}" / f"split={split}"


NO_FILE = ArtifactRef(path="answerability", sha256="", size_bytes=0)
"""Stands for the file of a count that is not written yet."""
