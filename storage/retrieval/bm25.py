"""A BM25 index on disk: bm25s's arrays (npy) and words (JSON) in one folder that is complete or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import bm25s
from pydantic import Field

from schemas.base import Record
from schemas.records.ledger import ArtifactRef
from storage.disk.folders import FolderKind, build_folder
from storage.retrieval.encoders import UNREADABLE
from storage.retrieval.indexes import IndexUnusableError, check_hash


class BM25Manifest(Record):
    """What a folder of a BM25 index is made of."""

    corpus_hash: str = Field(description="sha256 of the corpus file.")
    recipe_hash: str = Field(description="sha256 of the settings that decide the index.")
    num_passages: int = Field(ge=1)
    files: tuple[ArtifactRef, ...] = Field(description="Every other file, its path relative to the folder.")


_KIND: Final = FolderKind("BM25 index", BM25Manifest, IndexUnusableError, "build it first", "build the index again")


def save_bm25(folder: Path, index: bm25s.BM25, corpus_hash: str, recipe_hash: str) -> None:
    """Write a folder durably; a reader sees all of it or none. One that is there is replaced.

    The caller is `building_alone`. Raises WriteFailedError when the system refuses.
    """
    with build_folder(folder) as building:
        index.save(building.path, allow_pickle=False, show_progress=False)
        building.write_manifest(
            BM25Manifest(
                corpus_hash=corpus_hash,
                recipe_hash=recipe_hash,
                num_passages=index.scores["num_docs"],
                files=building.references(),
            )
        )


def load_bm25(folder: Path, corpus_hash: str, recipe_hash: str) -> Any:
    """Open a folder as a bm25s index, its arrays memory-mapped.

    Raises IndexUnusableError when it is missing or damaged, or was built from another corpus or with other settings.
    """
    manifest = _KIND.read_manifest(folder)
    check_hash(folder, "corpus", manifest.corpus_hash, corpus_hash)
    check_hash(folder, "sort", manifest.recipe_hash, recipe_hash)
    for reference in manifest.files:
        _KIND.check_file(folder, reference)
    try:
        return bm25s.BM25.load(folder, mmap=True, allow_pickle=False, load_corpus=False, show_progress=False)
    except UNREADABLE as error:
        raise _KIND.unreadable(folder, error) from error
