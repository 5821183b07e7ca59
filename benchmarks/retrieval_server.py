"""Queries a second of `sdsearch retriever serve` over HTTP on the embedded world; prints a Markdown table.

`python benchmarks/retrieval_server.py [--seconds 4] [--kinds dense bm25 hybrid]`. The server is a process of its own,
each client too; a client waits for its answer before it asks again. Queries are gold queries of the world, none twice
in one request. The server's CPU is that of a query, all threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from retrieval import gold_queries

from sdsearch.retrieval.http import HttpRetriever

LOADS = ((1, 1), (8, 1), (1, 64), (8, 64))
"""Clients at a time, and queries a request."""


@contextmanager
def serving(kind: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server and give its URL and process."""
    with tempfile.TemporaryDirectory() as workspace:
        command = [sys.executable, "-m", "flows.app", "retriever", "serve", "tiny", "--port=0"]
        options = [f"--workspace={workspace}", f"--set=retrieval.kind={kind}"]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def ask(url: str, seed: int, size: int, seconds: float, told: Any) -> None:
    """Ask until the time is over; tell the seconds of each request."""
    drawn = random.Random(seed)
    texts = sorted({query.text for query in gold_queries()})
    retriever = HttpRetriever([url])
    retriever.search(texts[:size], 3)
    ends, took = time.monotonic() + seconds, []
    while time.monotonic() < ends:
        queries = drawn.sample(texts, size)
        started = time.perf_counter()
        retriever.search(queries, 3)
        took.append(time.perf_counter() - started)
    told.put(took)


def measure(url: str, clients: int, size: int, seconds: float) -> tuple[float, float, float]:
    """Return queries a second, and the median and the 95th percentile of a request, ms."""
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    asking = [context.Process(target=ask, args=(url, seed, size, seconds, told)) for seed in range(clients)]
    for client in asking:
        client.start()
    took = [one for _ in asking for one in told.get()]
    for client in asking:
        client.join()
    return len(took) * size / seconds, 1000 * float(np.median(took)), 1000 * float(np.quantile(took, 0.95))


def searched(url: str) -> NDArray[np.float64]:
    """Return how many queries the server has searched, and in how many calls."""
    metrics = httpx.get(f"{url}/metrics").text
    found = [
        re.findall(rf"^sdsearch_queries_together_{name} (.*)$", metrics, re.MULTILINE) for name in ("sum", "count")
    ]
    return np.array([float(values[0]) for values in found])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--kinds", nargs="+", default=["dense", "bm25", "hybrid"])
    arguments = parser.parse_args()
    gold_queries()  # The clients are forks: what is loaded now need not be loaded by each.
    print("| kind | clients | a request | queries/s | median ms | 95 % ms | searched together | server's CPU, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        with serving(kind) as (url, process):
            for clients, size in LOADS:
                before, cpu_before = searched(url), sum(process.cpu_times()[:2])
                rate, median, slow = measure(url, clients, size, arguments.seconds)
                queries, calls = searched(url) - before
                cpu_ms = 1000 * (sum(process.cpu_times()[:2]) - cpu_before) / queries
                row = f"{rate:,.0f} | {median:.1f} | {slow:.1f} | {queries / calls:.1f} | {cpu_ms:.2f}"
                print(f"| {kind} | {clients} | {size} | {row} |", flush=True)


if __name__ == "__main__":
    main()
