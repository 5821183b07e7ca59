"""A workspace with all that is kept in it; needs no model."""

from __future__ import annotations

import logging

from schemas.records.ledger import RunRecord
from storage.data.answerability import AnswerabilityStore
from storage.data.question_sets import QuestionSets
from storage.database.connection import Database
from storage.database.stage_rows import StageRowsReader
from storage.database.sync import DatabaseSync
from storage.errors import DamagedArtifactError, RunNotFoundError
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

logger = logging.getLogger(__name__)


class Storage:
    """A workspace's artifact files, checkpoints, ledger, and the database that indexes them.

    read_only: the database is only read; who wants to write no file either keeps to the methods that read.
    """

    def __init__(self, workspace: Workspace, database_deadline_s: float = 60.0, *, read_only: bool = False) -> None:
        self.workspace = workspace
        self.artifacts = ArtifactStore(workspace)
        self.checkpoints = CheckpointStore(workspace)
        self.ledger = Ledger(self.artifacts)
        self.question_sets = QuestionSets(self.artifacts)
        self.answerability = AnswerabilityStore(self.artifacts)
        self.database = Database(workspace, database_deadline_s, read_only=read_only)
        self.rows_of = StageRowsReader(self.ledger, self.artifacts)
        self.sync = DatabaseSync(self.database, self.ledger, self.rows_of)

    def find_run(self, run: str) -> RunRecord:
        """Return a run's record; one whose file is damaged or missing is put back from the database.

        Raises RunNotFoundError or DamagedArtifactError when the database does not have it either.
        """
        try:
            return self.ledger.get_run(run)
        except (RunNotFoundError, DamagedArtifactError) as error:
            record = self.sync.find_run(run) if self.workspace.run_folder(run).is_dir() else None
            if record is None:
                raise
            logger.warning("the record of run '%s' is put back from the database: %s", run, error)
            self.ledger.put_back_run(record)
            return record

    def create_run(self, record: RunRecord) -> None:
        """Add a run; RunExistsError when its name is taken."""
        self.ledger.create_run(record)
        self.sync.put_run(record.run)

    def update_run(self, record: RunRecord) -> None:
        """Replace a run's record."""
        self.ledger.update_run(record)
        self.sync.put_run(record.run)
