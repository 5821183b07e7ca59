from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.records.passage import Passage
from sdsearch.data.readers import file_hash
from sdsearch.retrieval.dense import DenseRetriever, build_index
from sdsearch.retrieval.lexical import LexicalEncoder, recipe_hash
from sdsearch.world import corpus_file, load_passages
from storage.retrieval.corpora import StoredPassages, write_passages
from storage.retrieval.encoders import EncoderState
from storage.retrieval.indexes import IndexIdentity, IndexUnusableError, VectorBlocks, load_index, save_index

TEXTS = ["Lima is the capital of Peru.", "Quito is the capital of Ecuador.", "Sal is an island."]
CORPUS, ENCODER = "c" * 64, "e" * 64
IDENTITY = IndexIdentity(CORPUS, ENCODER)


def make_passages(texts: list[str] = TEXTS) -> list[Passage]:
    return [Passage(id=f"p{number}", title="T", text=text) for number, text in enumerate(texts)]


@dataclass(frozen=True)
class Built:
    """An index that was built in memory and saved."""

    folder: Path
    encoder: LexicalEncoder
    retriever: DenseRetriever


def build(folder: Path, passages: list[Passage], corpus_hash: str = CORPUS, encoder_hash: str = ENCODER) -> Built:
    encoder = LexicalEncoder.fit([passage.contents for passage in passages])
    index = build_index(passages, encoder)
    save_index(folder, index, EncoderState(*encoder.state()), IndexIdentity(corpus_hash, encoder_hash))
    return Built(folder, encoder, DenseRetriever(encoder, index, passages))


@pytest.fixture
def small(tmp_path: Path) -> Built:
    return build(tmp_path / "indexes" / "small", make_passages())


def test_the_embedded_index_is_mapped_and_finds_what_it_found_before(tmp_path: Path) -> None:
    corpus_hash = file_hash(corpus_file())
    built = build(tmp_path / "world", load_passages(), corpus_hash)
    started = time.process_time()
    stored = load_index(built.folder, IndexIdentity(corpus_hash, ENCODER))
    encoder = LexicalEncoder.from_state(*stored.encoder)
    retriever = DenseRetriever(encoder, stored.vectors, load_passages())
    loading_s = time.process_time() - started
    queries = ["capital of Peru", "Austria demonym", "element whose atomic number is 67", "qqqq"]
    assert retriever.search(queries, 3) == built.retriever.search(queries, 3)
    assert encoder.fingerprint() == built.encoder.fingerprint()
    assert recipe_hash(encoder.settings) == recipe_hash(built.encoder.settings)
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = maps.read_text(encoding="utf-8")
        assert str(built.folder / "vectors.faiss") in mapped
    assert loading_s < 3, "processor time: a second is usual"
    assert stored.manifest.num_passages == 4879
    assert stored.manifest.num_dimensions == 2048


def test_an_index_of_another_corpus_or_encoder_is_refused(small: Built) -> None:
    with pytest.raises(IndexUnusableError, match=r"another corpus: .*corpus c{16}, this run has corpus d{16}"):
        load_index(small.folder, IndexIdentity("d" * 64, ENCODER))
    with pytest.raises(IndexUnusableError, match=r"another encoder: .*e{16}.* f{16}; build the index again"):
        load_index(small.folder, IndexIdentity(CORPUS, "f" * 64))


def test_a_missing_index_says_so(tmp_path: Path) -> None:
    with pytest.raises(IndexUnusableError, match=r"no index here .*build it first"):
        load_index(tmp_path / "nothing", IDENTITY)


@pytest.mark.parametrize("name", ["vectors.faiss", "encoder.json", "encoder.npz"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_file_is_named(small: Built, name: str, damage: str) -> None:
    path = small.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(IndexUnusableError, match=rf"{name}: .*delete the folder and build the index again"):
        load_index(small.folder, IDENTITY)


def test_a_damaged_manifest_is_named(small: Built) -> None:
    (small.folder / "manifest.json").write_text('{"corpus_hash": 5}', encoding="utf-8")
    with pytest.raises(IndexUnusableError, match=r"manifest\.json: not the manifest of such a folder"):
        load_index(small.folder, IDENTITY)


def test_an_interrupted_build_leaves_nothing_and_spares_what_was_there(small: Built) -> None:
    def blocks_until_the_disk_is_full() -> Iterator[NDArray[np.float32]]:
        yield np.ones((2, 4), dtype=np.float32)
        raise OSError(28, "No space left on device")

    state = EncoderState(*small.encoder.state())
    for folder in (small.folder, small.folder.with_name("fresh")):
        with pytest.raises(OSError, match="No space left"):
            save_index(folder, VectorBlocks(3, 4, blocks_until_the_disk_is_full()), state, IDENTITY)
    assert [path.name for path in small.folder.parent.iterdir()] == ["small"]
    assert load_index(small.folder, IDENTITY).manifest.corpus_hash == CORPUS


def test_an_exact_index_written_block_by_block_is_the_file_that_faiss_writes(small: Built) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    index = faiss.IndexFlatIP(3)
    index.add(vectors_ND)
    whole, streamed = small.folder.with_name("whole"), small.folder.with_name("streamed")
    save_index(whole, index, EncoderState({}, {}), IDENTITY)
    save_index(streamed, VectorBlocks(10, 3, (vectors_ND[:4], vectors_ND[4:])), EncoderState({}, {}), IDENTITY)
    assert (streamed / "vectors.faiss").read_bytes() == (whole / "vectors.faiss").read_bytes()


def test_building_again_replaces_the_former_index(small: Built) -> None:
    build(small.folder, make_passages(["Oslo is the capital of Norway."]), "d" * 64)
    stored = load_index(small.folder, IndexIdentity("d" * 64, ENCODER))
    assert stored.vectors.ntotal == stored.manifest.num_passages == 1
    assert [path.name for path in small.folder.parent.iterdir()] == ["small"]


def test_wrong_numbers_and_pickled_arrays_are_refused(small: Built, tmp_path: Path) -> None:
    block_ND = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="2 passages for an index of 3 vectors"):
        save_index(tmp_path / "x", VectorBlocks(2, 4, [block_ND]), EncoderState({}, {}), IDENTITY)
    with pytest.raises(ValueError, match="vectors of 4 dimensions for an index of 5"):
        save_index(tmp_path / "x", VectorBlocks(3, 5, [block_ND]), EncoderState({}, {}), IDENTITY)
    pickled = EncoderState({}, {"words": np.array(["a", None], dtype=object)})
    with pytest.raises(ValueError, match="encoder arrays words hold Python objects"):
        save_index(tmp_path / "x", small.retriever.index, pickled, IDENTITY)
    assert not (tmp_path / "x").exists()


def test_stored_passages_are_a_sequence_over_many_batches(tmp_path: Path) -> None:
    passages = [Passage(id=str(row), title=f"Tïtle {row}", text="x" * (row % 7 + 1)) for row in range(40_000)]
    write_passages(tmp_path / "passages.arrow", [passages[:16_384], passages[16_384:32_768], passages[32_768:]])
    stored = StoredPassages(tmp_path / "passages.arrow")
    assert len(stored) == len(passages)
    for row in (0, 16_383, 16_384, 32_768, 39_999, -1, -40_000):
        assert stored[row] == passages[row]
    assert stored[16_380:16_390:3] == passages[16_380:16_390:3]
    texts = [passage.contents for passage in passages]
    for start, stop in ((0, 40_000), (16_000, 33_000), (39_990, 40_000), (7, 7)):
        assert list(stored.contents(start, stop)) == texts[start:stop]
    for row in (40_000, -40_001):
        with pytest.raises(IndexError):
            stored[row]
