"""A workspace with all that is kept in it; needs no model."""

from __future__ import annotations

from flows.rows import RowsFromFiles
from schemas.ledger import RunRecord
from storage.artifacts import ArtifactStore
from storage.checkpoints import CheckpointStore
from storage.database import Database
from storage.index import Index
from storage.ledger import Ledger
from storage.workspace import Workspace


class Stores:
    """A workspace's artifact files, checkpoints, ledger, and the database that indexes them."""

    def __init__(self, workspace: Workspace, database_deadline_s: float = 60.0) -> None:
        self.workspace = workspace
        self.artifacts = ArtifactStore(workspace)
        self.checkpoints = CheckpointStore(workspace)
        self.ledger = Ledger(self.artifacts)
        self.database = Database(workspace, database_deadline_s)
        self.rows_of = RowsFromFiles(self.ledger, self.artifacts)
        self.index = Index(self.database, self.ledger, self.rows_of)

    def create_run(self, record: RunRecord) -> None:
        """Add a run; RunExistsError when its name is taken."""
        self.ledger.create_run(record)
        self.index.put_run(record.run)

    def update_run(self, record: RunRecord) -> None:
        """Replace a run's record."""
        self.ledger.update_run(record)
        self.index.put_run(record.run)
