"""The cache of searches: what it gives back, to whom, and what it costs when something is wrong with it."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from schemas.records.passage import Passage, SearchHit
from sdsearch.retrieval.cached import CachedRetriever
from sdsearch.retrieval.ports import RetrieverDownError
from storage.retrieval.hit_cache import HitCache
from tests.support.fakes import FixedRetriever

HITS = (
    SearchHit(passage=Passage(id="7", title='A "title"', text="a\ntext \U0001f600 \x00 of signs"), score=0.1 + 0.2),
    SearchHit(passage=Passage(id="8", title="", text="another"), score=-1e-300),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hits.sqlite"


def filled(path: Path, *queries: str, index: str = "one", max_entries: int = 100) -> HitCache:
    cache = HitCache(path, index, max_entries)
    cache.put(dict.fromkeys(queries, HITS), 3)
    return cache


def test_what_was_put_comes_back_to_the_last_digit_also_in_another_process(path: Path) -> None:
    queries = ("river", "", "a" * 1_000_000, "\ud800 lone", "'; DROP TABLE hits")
    filled(path, *queries).close()
    HitCache(path, "one", 100).put({"nothing": ()}, 3)
    again = HitCache(path, "one", 100)
    assert again.get([*queries, "nothing", "unknown"], 3) == {**dict.fromkeys(queries, HITS), "nothing": ()}


def test_another_index_or_number_of_passages_never_sees_an_entry(path: Path) -> None:
    cache = filled(path, "river")
    assert cache.get(["river"], 2) == {}
    assert HitCache(path, "another", 100).get(["river"], 3) == {}
    assert cache.get(["river"], 3)


def test_it_is_bounded_and_the_oldest_go(path: Path) -> None:
    cache = HitCache(path, "one", 5)
    for number in range(12):
        cache.put({f"q{number}": HITS}, 3)
        cache.put({f"q{number}": HITS}, 3)
    assert set(cache.get([f"q{number}" for number in range(12)], 3)) == {"q7", "q8", "q9", "q10", "q11"}


def test_processes_and_threads_share_it(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=filled, args=(path, *(f"{k} {n}" for n in range(20)))) for k in range(3)]
    cache = HitCache(path, "one", 1000)
    threads = [threading.Thread(target=cache.put, args=({f"t{n}": HITS}, 3)) for n in range(5)]
    for one in (*others, *threads):
        one.start()
    for one in (*others, *threads):
        one.join()
    assert [process.exitcode for process in others] == [0, 0, 0]
    asked = [*(f"{k} {n}" for k in range(3) for n in range(20)), *(f"t{n}" for n in range(5))]
    assert len(cache.get(asked, 3)) == 65


def spoil_the_beginning(path: Path) -> None:
    path.write_bytes(b"no database" + path.read_bytes()[11:])


def spoil_a_text(path: Path) -> None:
    content = path.read_bytes()
    assert b"another" in content
    path.write_bytes(content.replace(b"another", b"anothes"))


def another_shape(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE entries (query TEXT)")
    database.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("spoil", [spoil_the_beginning, spoil_a_text, another_shape, cut])
def test_a_damaged_file_is_put_aside_and_made_anew(
    spoil: Callable[[Path], None], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path, "river").close()
    spoil(path)
    cache = HitCache(path, "one", 100)
    assert cache.get(["river"], 3) == {}
    assert f"the cache {path} is damaged" in caplog.text
    assert path.with_name("hits.sqlite.damaged").exists()
    cache.put({"river": HITS}, 3)
    assert cache.get(["river"], 3) == {"river": HITS}
    assert caplog.text.count("is damaged") == 1


def test_a_file_that_another_process_has_made_anew_stays(path: Path) -> None:
    slow, quick = filled(path, "river"), HitCache(path, "one", 100)
    path.replace(path.with_name("hits.sqlite.damaged"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    quick.put({"tree": HITS}, 3)
    slow._texts._guarded(lambda _: (_ for _ in ()).throw(sqlite3_corrupt()), None)
    assert slow.get(["tree"], 3) == {"tree": HITS}


def sqlite3_corrupt() -> sqlite3.Error:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


@pytest.mark.parametrize("is_busy", [True, False])
def test_without_it_searches_go_on(
    is_busy: bool, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("storage.disk.text_cache._BUSY_S", 0.01)
    filled(path, "river").close()
    holder = sqlite3.connect(path, isolation_level=None)
    if is_busy:
        holder.execute("BEGIN EXCLUSIVE")
    else:
        path.unlink()
        path.mkdir()
    cache = HitCache(path, "one", 100)
    retriever = CachedRetriever(FixedRetriever(), cache)
    assert retriever.search(["tree"], 1) == FixedRetriever().search(["tree"], 1)
    assert ("is busy" if is_busy else "cannot be used") in caplog.text
    holder.close()
    if is_busy:
        retriever.search(["tree"], 1)
        assert cache.get(["tree"], 1), "the next search has it again"


def test_the_retriever_is_asked_for_what_is_not_known_and_once_for_each(path: Path) -> None:
    inner = FixedRetriever(("one text", "two texts"))
    retriever = CachedRetriever(inner, HitCache(path, "one", 100))
    first = retriever.search(["river", "tree", "river", "nothing"], 2)
    second = retriever.search(["tree", "nothing", "sea"], 2)
    assert inner.batches == [("river", "tree", "nothing"), ("sea",)]
    assert [*first, *second] == FixedRetriever(("one text", "two texts")).search(
        ["river", "tree", "river", "nothing", "tree", "nothing", "sea"], 2
    )
    assert (retriever.counts.num_queries, retriever.counts.num_cached) == (7, 3)
    assert retriever.search(["tree"], 2) == second[:1]
    assert len(inner.batches) == 2, "nobody is asked for nothing"


def test_a_search_that_fails_is_not_kept(path: Path) -> None:
    class Failing:
        def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
            raise OSError("down")

    cache = HitCache(path, "one", 100)
    with pytest.raises(RetrieverDownError, match="down"):
        CachedRetriever(Failing(), cache).search(["river"], 3)
    assert cache.get(["river"], 3) == {}
