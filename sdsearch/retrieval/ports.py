"""The two ports of retrieval and the closed union of its outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError
from schemas.passage import SearchHit

TextKind = Literal["query", "passage"]


class RetrieverDownError(UserError):
    """The retriever could not answer: an error of the run, never an empty result that is trained on."""


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
