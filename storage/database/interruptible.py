"""A query of any length that Ctrl-C ends at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import duckdb

T = TypeVar("T")


def interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """Return what `work` makes of queries on the connection; an error in this thread ends the query first.

    DuckDB looks for signals only between the tasks of the thread that asked. A query that runs on several threads, or
    whose task takes long (a join of large tables), would go on after Ctrl-C. So the query has a thread of its own.
    """
    with ThreadPoolExecutor(1, "query") as executor:
        result = executor.submit(work)
        try:
            return result.result()
        except BaseException:
            # An interrupt before the query has begun does nothing: it is repeated until the thread is done.
            while not result.done():
                connection.interrupt()
                wait([result], timeout=0.05)
            raise
