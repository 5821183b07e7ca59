"""The folders below `questions/`: data sets as they were prepared, and their rows in the database.

A split is `questions/dataset=…/split=…/`: the questions as parquet, and `set.json`, which is written last and names the
file by its hash. The files are the truth; the rows can be made again from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
from pydantic import ValidationError

from schemas.names import is_name
from schemas.records.question import Question
from schemas.records.question_set import PreparedSet, QuestionSet
from storage.database.connection import Database
from storage.database.tables import insert, table_schemas
from storage.disk.files import locked, write_atomic, write_json_atomic
from storage.errors import DamagedArtifactError, RecordMismatchError, StorageError, WorkspaceError
from storage.runs.artifacts import ArtifactStore, write_parquet
from storage.workspace import SET_FILE

_QUESTIONS = "questions.parquet"


class QuestionSets:
    """Writes prepared splits and brings them into the database."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._workspace = artifacts.workspace

    def write(self, report: QuestionSet, questions: Sequence[Question]) -> PreparedSet:
        """Make a split durable, in place of an earlier one; WriteFailedError when it cannot be written."""
        folder = self._folder(report.dataset, report.split)
        root = self._workspace.root
        with locked(self._workspace.questions_lock):
            self._workspace.claim()
            file = write_atomic(folder / _QUESTIONS, lambda path: write_parquet(path, Question, questions), root)
            prepared = PreparedSet(report=report, file=file, prepared_at=datetime.now(UTC))
            write_json_atomic(folder / SET_FILE, prepared.model_dump(mode="json"), root)
        return prepared

    def prepared(self) -> Iterator[PreparedSet | DamagedArtifactError]:
        """Yield what was prepared, by name; an error in place of one whose `set.json` is damaged."""
        for path in self._workspace.set_files():
            try:
                yield PreparedSet.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                reason = str(error).splitlines()[0]
                yield DamagedArtifactError(f"{path} is damaged ({reason}); sdsearch data prepare writes it again")

    def read(self, prepared: PreparedSet) -> list[Question]:
        """Return the questions of a split; DamagedArtifactError when its file is missing or altered."""
        try:
            self._artifacts.verify(prepared.file)
            return self._artifacts.read_records(prepared.file, Question)
        except (DamagedArtifactError, RecordMismatchError) as error:
            name = f"{prepared.report.dataset}:{prepared.report.split}"
            raise DamagedArtifactError(
                f"questions of {name}: {error}; sdsearch data prepare writes it again"
            ) from error

    def index(self, database: Database, prepared: PreparedSet, questions: Sequence[Question]) -> None:
        """Put a split into the database in place of its former rows; DatabaseBusyError when another has it."""
        with database.transaction() as connection:
            _put(connection, prepared, questions)

    def index_all(self, database: Database) -> tuple[int, tuple[str, ...]]:
        """Put every prepared split into the database; return how many, and what could not be read and why."""
        num_sets = 0
        left_out = []
        for prepared in self.prepared():
            try:
                if isinstance(prepared, DamagedArtifactError):
                    raise prepared
                self.index(database, prepared, self.read(prepared))
                num_sets += 1
            except DamagedArtifactError as error:
                left_out.append(str(error))
        return num_sets, tuple(left_out)

    def problems(self, database: Database) -> Iterator[str]:
        """Yield one sentence for each split whose file is damaged or which the database holds otherwise."""
        query = "SELECT dataset, split, questions_sha256 FROM question_sets"
        indexed = {(row["dataset"], row["split"]): row["questions_sha256"] for row in database.query(query).to_pylist()}
        query = "SELECT dataset, split, count(*) AS num FROM prepared_questions GROUP BY dataset, split"
        counts = {(row["dataset"], row["split"]): row["num"] for row in database.query(query).to_pylist()}
        for prepared in self.prepared():
            if isinstance(prepared, DamagedArtifactError):
                yield str(prepared)
                continue
            report = prepared.report
            key = (report.dataset, report.split)
            try:
                self._artifacts.verify(prepared.file)
            except StorageError as error:
                yield f"questions of {report.dataset}:{report.split}: {error}"
            if (indexed.pop(key, None), counts.get(key, 0)) != (report.questions_sha256, report.num_kept):
                yield f"questions of {report.dataset}:{report.split}: the database does not hold them as prepared"
        for dataset, split in indexed:
            yield f"questions of {dataset}:{split}: in the database, but not among the files"

    def _folder(self, dataset: str, split: str) -> Path:
        for name in (dataset, split):
            if not is_name(name):
                raise WorkspaceError(f"data set or split {name[:100]!r} cannot be used as the name of a folder")
        return self._workspace.questions / f"dataset={dataset}" / f"split={split}"


def _put(connection: duckdb.DuckDBPyConnection, prepared: PreparedSet, questions: Sequence[Question]) -> None:
    report = prepared.report
    for name in ("question_sets", "prepared_questions"):
        connection.execute(f'DELETE FROM "{name}" WHERE dataset = ? AND split = ?', [report.dataset, report.split])
    prepared_at = prepared.prepared_at.astimezone(UTC).replace(tzinfo=None)
    row = {**report.model_dump(), "file": prepared.file.model_dump(), "prepared_at": prepared_at}
    insert(connection, "question_sets", pa.Table.from_pylist([row], schema=table_schemas()["question_sets"]))
    rows = [{**q.model_dump(exclude={"id"}), "question_key": q.key, "question_id": q.id} for q in questions]
    insert(connection, "prepared_questions", pa.Table.from_pylist(rows, schema=table_schemas()["prepared_questions"]))
