"""What a checkpoint of several ranks takes: seconds, bytes, each rank's memory, for a model of 135 M random weights.

`python -m benchmarks.checkpoints [--ranks N] [--layers L]`. Weights are fp32, the optimiser is AdamW after one step.
The peaks are those of anonymous memory, sampled: pages of files that are mapped can be dropped at any time.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flows.training.ranks.checkpoint import read_shards, write_spread
from schemas.settings.distributed import DistributedSettings
from schemas.settings.root import UpdateSettings
from sdsearch.model.policy import load_model, trainable_parameters
from sdsearch.model.sharding import rank_mesh, shard
from sdsearch.training.optimiser import load_optimiser_state, make_optimiser, optimiser_state
from storage.disk.manifest import verify_folder, write_folder_atomic
from storage.disk.spread import StoredTensors
from storage.disk.tensors import TensorsDigest
from tests.support.ranks import on_ranks

Figures = dict[str, tuple[float, float]]
_SAMPLE_S = 0.005


def anonymous_mb() -> float:
    """Return the process's anonymous memory, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+)", status)
    return int(kilobytes) / 1e3


@contextmanager
def measured(figures: Figures, name: str) -> Iterator[None]:
    """Keep the seconds of a block, and by how many MB its memory at its highest was above that at its start."""
    began, started, peak, over = anonymous_mb(), time.perf_counter(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_S):
            peak[0] = max(peak[0], anonymous_mb() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        over.set()
        watcher.join()
        figures[name] = (seconds, peak[0])


def one_rank(model_folder: str, target: str) -> Figures:
    """Open a policy in shards, write it with its optimiser, and read the optimiser again."""
    figures: Figures = {}
    mesh = rank_mesh("cpu", DistributedSettings(ranks=2))
    with measured(figures, "open, in shards"):
        model = load_model(model_folder, "float32")
        shard(model, mesh)
    weights = trainable_parameters(model)
    optimiser = make_optimiser(model, UpdateSettings())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    optimiser.zero_grad()
    with measured(figures, "write weights"):
        write_spread(Path(target) / "model.safetensors", weights, digest=TensorsDigest())
    with measured(figures, "write optimiser"):
        write_spread(Path(target) / "state.safetensors", optimiser_state(model, optimiser))
    again = make_optimiser(model, UpdateSettings())
    with measured(figures, "read optimiser"):
        stored = StoredTensors(Path(target) / "state.safetensors")
        of = {name: weights[name.partition(".")[2]] for name in stored.names}
        load_optimiser_state(model, again, read_shards(stored, of))
    return figures


def make_folder(layers: int) -> str:
    """Write a Llama of SmolLM2-135M's shape with random weights; return its folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    folder = tempfile.mkdtemp(prefix="sdsearch-checkpoints-")
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    largest = max(weight.numel() * weight.element_size() for weight in model.parameters())
    print(f"{model.num_parameters() / 1e6:.0f} M weights, fp32; the largest tensor has {largest / 1e6:.0f} MB")
    return folder


def main() -> None:
    """Print a table of each rank's figures, and how long the folder takes to be hashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args()
    model_folder = make_folder(options.layers)
    with tempfile.TemporaryDirectory(prefix="sdsearch-checkpoints-") as place:
        target = Path(place, "parts")
        target.mkdir()
        ranks = on_ranks(options.ranks, one_rank, model_folder, str(target))
        print(f"{'':18} {'seconds':>8}   peak above the start, MB, of each rank")
        for name in ranks[0]:
            seconds = max(figures[name][0] for figures in ranks)
            print(f"{name:18} {seconds:8.1f}   {' '.join(f'{figures[name][1]:6.0f}' for figures in ranks)}")
        files = sorted(target.glob("*.safetensors"))
        print(f"files, MB: {', '.join(f'{path.name} {path.stat().st_size / 1e6:.0f}' for path in files)}")
        folder = Path(place, "version")
        write_folder_atomic(folder, lambda path: [file.rename(path / file.name) for file in files] and None, folder)
        started = time.perf_counter()
        verify_folder(folder)
        print(f"verified in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
