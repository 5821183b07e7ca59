"""Our retrieval server over real HTTP, in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from sdsearch.retrieval.ports import Retriever
from sdsearch.retrieval.server import ServerLimits, make_app

NO_LIMITS = ServerLimits()


@contextmanager
def serving(
    retriever: Retriever, limits: ServerLimits = NO_LIMITS, index: str = "hash-of-the-index", port: int = 0
) -> Iterator[str]:
    """A real server of the loopback, on a free port when none is given."""
    config = uvicorn.Config(make_app(retriever, index, 3, limits), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
