"""The process of a rank: `python -m flows.training.ranks.rank OWNER ENDPOINT WORKSPACE RUN SOURCE CARDS`, of an agent.

CARDS are those that all ranks of this machine see, as CUDA_VISIBLE_DEVICES has them: the rank with the local number n
has the n-th. Where it is empty they see all.
OWNER is the agent's process, and ENDPOINT (HOST:PORT) the store of the run's. Ranks are in sessions of their own, so
that no signal of a terminal reaches them, and they must notice by themselves that it is gone: from the first moment on,
before torch is loaded, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Final

_WATCH_S: Final = 0.3


def end_with(owner: int) -> None:
    """End this process as soon as its parent is not `owner` any more."""

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, name="owner", daemon=True).start()


def _leave(code: int) -> None:
    """End this process at once: threads of gloo that still let tensors go may abort an interpreter that ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run's process, which ends the ranks.
    if sys.argv[6]:
        os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[6]  # Before torch is loaded.
    from flows.training.ranks.serve import serve

    try:
        serve(sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5] or None)
    except Exception:
        traceback.print_exc()
        _leave(1)
    _leave(0)
