"""What a policy is asked and what it searches, opened from settings alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flows.data.questions import Questions
from schemas.records.question import Question
from schemas.settings.data import SetName
from schemas.settings.root import Settings
from storage.workspace import Workspace

if TYPE_CHECKING:
    from sdsearch.retrieval.ports import Retriever


def load_questions(settings: Settings, split: str | None = None) -> list[Question]:
    """Return the questions of a split of the settings' data set (data.dataset), of evaluation.split when none is given.

    Raises UserError for a split that is not there and DataError for rows that are no questions.

    Examples:
        >>> len(sdsearch.load_questions(sdsearch.load_settings("tiny"), "dev"))
        1447
    """
    return Questions(settings.data).of(SetName(settings.data.dataset, split or settings.evaluation.split))


def open_retriever(settings: Settings, workspace: str | Path | None = None) -> Retriever:
    """Open what the settings' [retrieval] names: a retriever in this process, or a server.

    A local one needs a workspace, where its index is built when it is not there yet: SDSEARCH_HOME or ./workspace when
    none is given. Its method `search(queries, top_k)` returns the hits of each query, best first. Raises UserError
    for a corpus that cannot be read, RetrieverDownError when a server does not answer.

    Examples:
        >>> retriever = sdsearch.open_retriever(sdsearch.load_settings("tiny"), "workspace")
        >>> retriever.search(["capital of Peru"], 1)[0][0].passage.title
        'Government of Peru'
    """
    from flows.retrieval.open import open_retriever as open_from_settings

    folder = Workspace.open(workspace or os.environ.get("SDSEARCH_HOME", "workspace"))
    return open_from_settings(settings.retrieval, folder)[0]
