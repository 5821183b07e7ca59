"""A workspace and its runs, to be read: from a notebook, beside a run that works, or as a copied folder.

Nothing takes a run's lock. The database is opened read-only, for the moment of a query.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.api.frames import read_frame, run_sql
from flows.api.iteration import Iteration
from flows.run.status import shown_status
from flows.settings.load import stored_settings
from schemas.commands import command
from schemas.errors import UserError
from schemas.records.ledger import RunRecord
from schemas.records.question import Question
from schemas.settings.root import Settings
from storage.errors import RunNotFoundError
from storage.storage import Storage
from storage.workspace import open_existing

if TYPE_CHECKING:
    import pandas

    from flows.api.policy import Policy
    from sdsearch.retrieval.ports import Retriever


def open_workspace(folder: str | Path | None = None) -> Workspace:
    """Open a workspace to read it; the folder of SDSEARCH_HOME, or ./workspace, when none is given.

    Nothing is written, so a copied workspace will do, one on a read-only disk, and one whose runs are at work. Raises
    UserError when the folder holds no workspace.

    Examples:
        >>> sdsearch.open_workspace("workspace").runs()
        [Run('first', done, 3 of 3 iterations)]
    """
    path = Path(folder or os.environ.get("SDSEARCH_HOME", "workspace"))
    return Workspace(Storage(open_existing(path, needs_database=False), read_only=True))


def open_run(folder: str | Path, run: str) -> Run:
    """Open a run of a workspace to read it; it may be at work.

    Raises UserError when the folder holds no workspace, or the workspace no run of this name.

    Examples:
        >>> sdsearch.open_run("workspace", "first")
        Run('first', done, 3 of 3 iterations)
    """
    return open_workspace(folder).run(run)


@dataclass(frozen=True, repr=False)
class Workspace:
    """A workspace; made by `open_workspace`."""

    _storage: Storage

    @property
    def folder(self) -> Path:
        """The workspace's folder, absolute."""
        return self._storage.workspace.root

    def runs(self) -> list[Run]:
        """Return all runs, the oldest first: trainings, forks, replays and evaluations."""
        return [Run(self._storage, record.run) for record in self._storage.ledger.list_runs()]

    def run(self, name: str) -> Run:
        """Return a run by its name; UserError, with the nearest name, when there is none."""
        try:
            return Run(self._storage, self._storage.ledger.get_run(name).run)
        except RunNotFoundError as error:
            what = str(error).replace("this workspace", f"workspace {self.folder}")
            raise UserError(f"{what}; list them with open_workspace(...).runs()") from error

    def sql(self, query: str, **parameters: Any) -> pandas.DataFrame:
        """Return the rows of a query; `parameters` fill its `$name`. It can read only.

        Raises QueryError for a query that does not run, DatabaseBusyError when another process keeps the database for
        more than a minute.

        Examples:
            >>> sdsearch.open_workspace("workspace").sql("SELECT run, status FROM runs WHERE seed = $seed", seed=0)
                 run status
            0  first   done
        """
        return run_sql(self._storage, query, parameters)

    def __repr__(self) -> str:
        return f"Workspace({str(self.folder)!r}, {len(self.runs())} runs)"


@dataclass(frozen=True, repr=False)
class Run:
    """A run of a workspace; made by `open_run`. What it says is read anew each time, so a run at work grows."""

    _storage: Storage
    name: str
    _policies: dict[int, Policy] = field(default_factory=dict, compare=False)

    @property
    def record(self) -> RunRecord:
        """The run's record: its settings, and how far it is."""
        return self._storage.ledger.get_run(self.name)

    @property
    def settings(self) -> Settings:
        """The run's settings; UserError for those of a program whose settings were others."""
        return stored_settings(self.record)

    @property
    def status(self) -> str:
        """'running', 'done', 'failed', 'interrupted', or what is known of a process that is gone."""
        return shown_status(self._storage.workspace, self.record)

    @property
    def iterations(self) -> tuple[int, ...]:
        """The iterations that were begun, ascending, from 1; what stands before training is iteration 0.

        Examples:
            >>> sdsearch.open_run("workspace", "first").iterations
            (1, 2, 3)
        """
        return tuple(sorted({key.iteration for key in self._storage.workspace.stage_keys(self.name)} - {0}))

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of the policy whose weights can be loaded, ascending; version n follows the n-th update.

        0 is the starting weights. `storage.keep_checkpoints` says how many a run keeps.
        """
        return tuple(sorted({0, *self._storage.checkpoints.versions(self._holder_of_weights)}))

    def iteration(self, number: int) -> Iteration:
        """Return an iteration; UserError when it was not begun.

        Examples:
            >>> sdsearch.open_run("workspace", "first").iteration(3)
            Iteration(3, 'first')
        """
        number = int(number)  # Of a data frame it is a number of numpy, which the database does not take.
        known = self.iterations
        if number not in known and not (number == 0 and self._has_stages(0)):
            has = f"it has {known[0]} to {known[-1]}" if known else "it has none yet"
            resume = command("resume", self.name, workspace=self._storage.workspace.root)
            raise UserError(
                f"run '{self.name}' has no iteration {number} ({has}, {self.record.num_iterations} were asked for); "
                f"choose another one, or continue an unfinished run: {resume}"
            )
        return Iteration(self, number)

    def frame(self, table: str = "v_iterations") -> pandas.DataFrame:
        """Return the run's rows of a table or view; UserError for a name that is none.

        Examples:
            >>> sdsearch.open_run("workspace", "first").frame("v_learning_curve")[["updates_done", "num_questions"]]
               updates_done  num_questions
            0             0              4
            1             2              4
            2             3              4
        """
        return read_frame(self._storage, table, self.name, None)

    def sql(self, query: str, **parameters: Any) -> pandas.DataFrame:
        """Return the rows of a query, as `Workspace.sql`; `$run` in it is this run.

        Examples:
            >>> sdsearch.open_run("workspace", "first").sql("SELECT count(*) AS n FROM v_rollouts WHERE run = $run")
                n
            0  24
        """
        return run_sql(self._storage, query, {"run": self.name, **parameters} if "$run" in query else parameters)

    def policy(self, version: int | None = None) -> Policy:
        """Load a version of the policy, the newest that is kept when none is given; it stays loaded.

        Raises UserError for a version that is not kept, DamagedArtifactError when its files are altered.

        Examples:
            >>> sdsearch.open_run("workspace", "first").policy(2)
            Policy(version 2 of run 'first', mini)
        """
        from flows.api.policy import load_version

        version = self.versions[-1] if version is None else version
        if version not in self.versions:
            kept = ", ".join(map(str, self.versions))
            raise UserError(
                f"run '{self.name}' keeps no weights of version {version} (it has: {kept}); choose one of these; "
                "storage.keep_checkpoints sets how many a run keeps"
            )
        if version not in self._policies:
            source = self._holder_of_weights
            self._policies.clear()  # A notebook that walks through versions must not hold them all.
            self._policies[version] = load_version(self._storage, self.settings, source, version)
        return self._policies[version]

    def retriever(self) -> Retriever:
        """Open what the run searches: its index, or the server that its settings name.

        An index that is not in the workspace is built, which writes it there. Raises RetrieverDownError when a server
        does not answer.
        """
        from flows.retrieval.open import open_retriever

        return open_retriever(self.settings.retrieval, self._storage.workspace)[0]

    def questions(self, split: str | None = None) -> list[Question]:
        """Return the questions of a split of the run's data set, those of its evaluations when none is given."""
        from flows.api.inputs import load_questions

        return load_questions(self.settings, split)

    @property
    def _holder_of_weights(self) -> str:
        """The run whose checkpoints hold the policy: its own, or that of the run which it replays or evaluates."""
        record = self.record
        return record.run if record.trains else record.source or record.run

    def _has_stages(self, iteration: int) -> bool:
        return any(key.iteration == iteration for key in self._storage.workspace.stage_keys(self.name))

    def __repr__(self) -> str:
        record = self.record
        return f"Run({self.name!r}, {self.status}, {record.iterations_done} of {record.num_iterations} iterations)"
