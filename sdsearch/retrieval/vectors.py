"""The one place where texts become vectors: what an encoder gives is checked before anything is made of it.

Shape suffixes: `N` texts, `D` vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import UserError, library_errors
from sdsearch.retrieval.ports import Encoder, TextKind

_REMEDY: Final = "check what retrieval.encoder names"
_FLOAT16: Final = "; with float16 weights choose retrieval.encoder.dtype = float32 or bfloat16"
_PLURAL: Final[dict[TextKind, str]] = {"query": "queries", "passage": "passages"}


def encode_texts(
    encoder: Encoder, texts: Sequence[str], kind: TextKind, num_dimensions: int | None = None
) -> NDArray[np.float32]:
    """Return the (N, D) vectors of texts, all of whose numbers are finite; D is what was asked for, if anything was.

    Raises UserError when the encoder fails, and when it gives another number or width of vectors or one that is not
    finite: searches among those find nothing, which would look like a corpus without an answer.
    """
    with library_errors(f"the encoder fails on {len(texts)} {_PLURAL[kind]}", f"{_REMEDY}, and its device"):
        vectors_ND = np.asarray(encoder.encode(texts, kind), dtype=np.float32)
    widths = vectors_ND.shape[1:] if num_dimensions is None else (num_dimensions,)
    if vectors_ND.ndim != 2 or vectors_ND.shape != (len(texts), *widths):
        raise UserError(
            f"the encoder gives vectors of the shape {vectors_ND.shape} for {len(texts)} {_PLURAL[kind]}; expected "
            f"{len(texts)} vectors{f' of {num_dimensions} dimensions' if num_dimensions else ''}: {_REMEDY}"
        )
    _refuse(np.logical_not(np.isfinite(vectors_ND).all(axis=1)), "vectors that are not finite", texts, kind)
    return vectors_ND


def refuse_zero_vectors(vectors_ND: NDArray[np.float32], texts: Sequence[str], kind: TextKind) -> None:
    """Raise UserError for vectors of zero length, which an encoder of every text never gives unless it is broken."""
    _refuse(np.logical_not(vectors_ND.any(axis=1)), "zero vectors, which find nothing,", texts, kind)


def _refuse(is_bad_N: NDArray[np.bool_], what: str, texts: Sequence[str], kind: TextKind) -> None:
    rows = np.flatnonzero(is_bad_N)
    if len(rows):
        raise UserError(
            f"the encoder gives {what} for {len(rows)} of {len(texts)} {_PLURAL[kind]}, the first "
            f"{texts[rows[0]][:80]!r}; {_REMEDY}{_FLOAT16}"
        )
