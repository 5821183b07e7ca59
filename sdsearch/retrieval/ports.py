"""The two ports of retrieval and the closed union of its outcomes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.base import Section
from schemas.errors import UserError
from schemas.records.passage import SearchHit

TextKind = Literal["query", "passage"]


class RetrieverDownError(UserError):
    """The retriever could not answer: an error of the run, never an empty result that is trained on."""

    names_query = False
    failure = ""
    """What failed, without what to do: for work that is no run, and is not resumed."""


# What a retriever in this process, or the client of one elsewhere, raises when it cannot answer.
_FAILURES = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


class Encoder(Protocol):
    """Texts to unit vectors."""

    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        """Return (len(texts), D) vectors of unit length (or zero for a text without known terms)."""
        ...


class Retriever(Protocol):
    """Queries to passages."""

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits, best first; () means that nothing was found.

        Raises RetrieverDownError when the search itself failed.
        """
        ...


class RetrieverPlugin(Section):
    """A retriever of one's own: a plugin derives from this class; its fields are its settings, `retrieval.options`.

    What `search` needs is best opened once, for example in a `functools.cached_property`.
    """

    @abstractmethod
    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        """Return for each query up to `top_k` hits, best first; () means that nothing was found.

        Whatever it raises when the search failed ends the run; it can be resumed.
        """

    def contents_hash(self) -> str:
        """Return what identifies the passages that are searched, such as a file's sha256; '' where the settings do."""
        return ""


def search_all(retriever: Retriever, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
    """Return the retriever's answer to each query; [] for no queries, without asking.

    Raises RetrieverDownError, naming a query, when it fails and when what it returns is no answer to these queries.
    """
    if not queries:
        return []
    try:
        found = retriever.search(queries, top_k)
    except _FAILURES as error:
        if isinstance(error, RetrieverDownError) and error.names_query:
            raise  # A retriever that asks others through this function has said it already.
        raise _down(queries, 0, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Sequence) or len(found) != len(queries):
        number = len(found) if isinstance(found, Sequence) else type(found).__name__
        raise _down(queries, 0, f"it returned {number} results")
    for place, hits in enumerate(found):
        if not isinstance(hits, tuple | list) or not all(isinstance(hit, SearchHit) for hit in hits):
            raise _down(queries, place, f"it returned {str(hits)[:80]!r}, which are no passages")
        if len(hits) > top_k or not all(math.isfinite(hit.score) for hit in hits):
            raise _down(
                queries, place, f"it returned {len(hits)} passages of at most {top_k}, or a score is not finite"
            )
    return [tuple(hits) for hits in found]


def _down(queries: Sequence[str], place: int, reason: str) -> RetrieverDownError:
    failure = f"the retriever failed on query {queries[place][:200]!r} ({place + 1} of {len(queries)}): {reason}"
    error = RetrieverDownError(
        f"{failure}; repair it, then continue with: sdsearch resume RUN (no rollout was made from this)"
    )
    error.names_query = True
    error.failure = failure
    return error
