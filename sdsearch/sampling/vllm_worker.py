"""What runs inside vLLM's worker processes.

Two things that vLLM 0.32 does not do by itself: its processes end when the trainer does, however it ends (else they
would keep the GPU's memory from the resumed run), and on a CPU a reload reaches an LM head that is tied to the
embeddings (its weights are packed apart, and the packed ones stay as they were).
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

OWNER_VARIABLE = "SDSEARCH_ENGINE_OWNER"
_POLL_S = 1.0


def end_with(pid: int) -> None:
    """End this process as soon as process `pid` is gone; returns at once."""
    import psutil  # Comes with vLLM; tells a process from a later one with the same number.

    try:
        owner = psutil.Process(pid)
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch() -> None:
        while owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="owner", daemon=True).start()


class WorkerExtension:
    """vLLM mixes this class into its workers (`worker_extension_cls`)."""

    reload_weights: Any
    model_runner: Any

    def reload_policy(self, folder: str) -> None:
        """Load a folder's weights in place of the present ones."""
        self.reload_weights(weights_path=folder)
        lm_head: Any = getattr(self.model_runner.get_model(), "lm_head", None)
        if hasattr(lm_head, "cpu_linear"):
            lm_head.quant_method.process_weights_after_loading(lm_head)


# The import itself starts the watch: a worker is not ready for calls before it has loaded its model.
if OWNER_VARIABLE in os.environ:
    end_with(int(os.environ[OWNER_VARIABLE]))
