"""Recall, speed and size of the index kinds against exact search, on a million vectors made from real text.

    python benchmarks/index_recall.py encode  --model MODEL --out FOLDER [--passages 24000] [--threads 1]
    python benchmarks/index_recall.py augment --out FOLDER [--vectors 1000000]
    python benchmarks/index_recall.py measure --out FOLDER [--kinds ivf_sq6,…] [--only-first 250000]

`encode` cuts the machine's own documentation (man pages, /usr/share/doc, docstrings of Python packages) and the
embedded world into passages of about 60 words and encodes them with a BERT-like sentence encoder. A passage's vector is
the mean of its last layer's states and the mean of its middle layer's, each at unit length, side by side: twice the
model's width (MiniLM: 768). Every twelfth document is held out; its sentences, and questions of the embedded world, are
the queries.

`augment` makes more passages: x = (1 - w) a + w b + e, with a drawn at random, b one of its ten nearest neighbours,
w uniform in [0, 0.5], e Gaussian with the covariance of (neighbour - passage) over all pairs, scaled so that the
median cosine of a new vector to the nearest real one is that of a real one to its nearest real one; then unit length.
It prints quantiles of the cosine to the nearest neighbours, of the real set and of samples of the same size drawn from
the augmented one.

`measure` trains, fills and searches each kind, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import random
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from sdsearch.model.pretrained import open_model, open_tokenizer
from sdsearch.retrieval.kinds import Refined, without_warnings
from sdsearch.world import load_passages, load_questions

_MACRO_WITH_TEXT = re.compile(r"^\.(?:B|I|BR|IR|RB|RI|IB|BI|SH|SS|TP|IP|PP|Nm|Nd|Sh|It|Pa|Fl|Ar)\b\s*")
_WORDS_A_PASSAGE = 60
_HELD_OUT_EVERY = 12
_NEIGHBOURS = 10
_BLOCK = 16_384
_TRAIN_FINE = 65_536
Vectors = NDArray[np.float32]


def documents() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the machine's documentation, in an order that is the same on every run."""
    manuals = sorted(Path("/usr/share/man").glob("man[1-8]/*.gz"))
    # Manuals of one program family, all from one template, would be most of the text.
    families = Counter(path.name.split("_")[0] for path in manuals)
    manuals = [path for n, path in enumerate(manuals) if families[path.name.split("_")[0]] < 1000 or n % 10 == 0]
    docs = sorted(path for path in Path("/usr/share/doc").rglob("*") if path.suffix in {".txt", ".md", ".rst", ".html"})
    for path in manuals:
        if not path.is_symlink():
            yield path.name, roff_text(gzip.decompress(path.read_bytes()).decode(errors="ignore"))
    for path in docs:
        if path.is_file():
            yield path.name, html.unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8", errors="ignore")))
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        strings = re.findall(r'"""(.{400,}?)"""', path.read_text(encoding="utf-8", errors="ignore"), re.DOTALL)
        yield path.name, " ".join(strings[:6])


def roff_text(source: str) -> str:
    """Return a manual's text without its formatting."""
    lines = (_MACRO_WITH_TEXT.sub("", line) for line in source.splitlines() if not line.startswith(("'", '.\\"')))
    text = " ".join(line for line in lines if not line.startswith("."))
    return re.sub(r"\\(?:f[A-Z]|f\([A-Z]{2}|s[+-]?\d+|&|,|/|\|)", "", text).replace("\\-", "-").replace("\\(aq", "'")


def cut(text: str, limit: int) -> list[str]:
    """Return up to `limit` passages of a document, spread over it; those that hardly hold words are left out."""
    words = text.split()
    starts = range(0, max(len(words) - _WORDS_A_PASSAGE // 2, 0), _WORDS_A_PASSAGE)
    passages = [" ".join(words[start : start + _WORDS_A_PASSAGE]) for start in starts]
    prose = [passage for passage in passages if sum(c.isalpha() or c == " " for c in passage) > 0.8 * len(passage)]
    return prose[:: max(len(prose) // limit, 1)][:limit]


def texts(num_passages: int) -> tuple[list[str], list[str]]:
    """Return (passages, queries); no document gives both."""
    found, held_out, seen = [], [], set()
    for number, (_, text) in enumerate(documents()):
        # Copies of licences and of manuals under several names are one document.
        fresh = [passage for passage in cut(text, 4) if passage[:200] not in seen]
        seen.update(passage[:200] for passage in fresh)
        (held_out if number % _HELD_OUT_EVERY == 0 else found).extend(fresh)
    drawn = random.Random(0)
    drawn.shuffle(found)
    drawn.shuffle(held_out)
    world = [f"{passage.title}. {passage.text}" for passage in load_passages()]
    sentences = [s for text in held_out for s in re.split(r"(?<=[.!?]) ", text)[1:2] if 6 <= len(s.split()) <= 30]
    questions = [question.question for question in drawn.sample(load_questions("test"), 400)]
    return world + found[: num_passages - len(world)], sentences[:600] + questions


@torch.inference_mode()
def encode(model: str, contents: list[str], batch_size: int = 64) -> Vectors:
    """Return (N, 2 D) unit vectors of the texts: last and middle layer."""
    tokenizer = open_tokenizer(model, "--model", trust_remote_code=False)
    encoder = open_model(AutoModel, model, "--model", trust_remote_code=False).eval()
    vectors = np.empty((len(contents), 2 * encoder.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(contents)), key=lambda row: len(contents[row]))
    started = time.perf_counter()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [contents[row] for row in rows], truncation=True, max_length=112, padding=True, return_tensors="pt"
        )
        states = encoder(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].unsqueeze(-1).float()
        halves = [
            torch.nn.functional.normalize((layer * mask).sum(1), dim=-1)
            for layer in (states[-1], states[len(states) // 2])
        ]
        vectors[rows] = (torch.cat(halves, dim=-1) / 2**0.5).numpy()
        if start // batch_size % 20 == 0:
            rate = (start + len(rows)) / (time.perf_counter() - started)
            print(f"{start + len(rows)} of {len(order)} texts, {rate:.1f}/s", flush=True)
    return vectors


def encode_all(options: argparse.Namespace) -> None:
    """Write passages.npy, queries.npy and texts.json."""
    passages, queries = texts(options.passages)
    print(f"{len(passages)} passages, {len(queries)} queries", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "texts.json").write_text(json.dumps({"passages": passages, "queries": queries}), encoding="utf-8")
    for name, contents in (("queries", queries), ("passages", passages)):
        np.save(options.out / f"{name}.npy", encode(options.model, contents))


def neighbours(vectors: Vectors, among: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Return cosines and rows of the nearest `count` of `among`, without the vector itself."""
    cosines, rows = faiss.knn(vectors, among, count + 1, metric=faiss.METRIC_INNER_PRODUCT)
    # Copies of one text count as one: a cosine of 1 is the vector itself, or a copy.
    return cosines[:, 1:], rows[:, 1:]


class Maker:
    """Makes passages' vectors like the real ones."""

    def __init__(self, real: Vectors) -> None:
        self.real = real
        _, self.nearest = neighbours(real, real, _NEIGHBOURS)
        residuals = (real[self.nearest[:, :3].ravel()] - np.repeat(real, 3, axis=0)).astype(np.float64)
        covariance = residuals.T @ residuals / len(residuals)
        self.factor = np.linalg.cholesky(covariance + 1e-9 * np.eye(real.shape[1])).T.astype(np.float32)

    def make(self, count: int, scale: float, seed: int) -> Vectors:
        """Return (count, D) unit vectors."""
        random_ = np.random.default_rng(seed)
        first = random_.integers(len(self.real), size=count)
        second = self.nearest[first, random_.integers(_NEIGHBOURS, size=count)]
        weight = random_.uniform(0, 0.5, size=(count, 1)).astype(np.float32)
        noise = random_.standard_normal((count, self.real.shape[1]), dtype=np.float32) @ self.factor
        made = (1 - weight) * self.real[first] + weight * self.real[second] + scale * noise
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), dtype=np.float32)

    def calibrated_scale(self) -> float:
        """Return the scale at which a made set of the real one's size has the real median cosine to the nearest."""
        probes = slice(0, 2000)
        wanted = np.median(neighbours(self.real[probes], self.real, 1)[0])
        low, high = 0.0, 1.5
        for _ in range(7):
            scale = (low + high) / 2
            made = self.make(len(self.real), scale, seed=1)
            got = np.median(neighbours(made[probes], made, 1)[0])
            print(f"scale {scale:.3f}: median cosine {got:.4f}, wanted {wanted:.4f}", flush=True)
            low, high = (low, scale) if got < wanted else (scale, high)
        return (low + high) / 2


def augment(options: argparse.Namespace) -> None:
    """Write vectors.npy, float16: the real passages first, then made ones; print how alike they are."""
    real, queries = (
        np.load(options.out / "passages.npy", allow_pickle=False),
        np.load(options.out / "queries.npy", allow_pickle=False),
    )
    maker = Maker(real)
    scale = maker.calibrated_scale()
    path = options.out / "vectors.npy"
    vectors = np.lib.format.open_memmap(path, "w+", np.float16, (options.vectors, real.shape[1]))
    vectors[: len(real)] = real
    for start in range(len(real), options.vectors, _BLOCK):
        count = min(_BLOCK, options.vectors - start)
        vectors[start : start + count] = maker.make(count, scale, seed=start)
    drawn = np.random.default_rng(3).choice(np.arange(len(real), options.vectors), len(real), replace=False)
    made = np.asarray(vectors[np.sort(drawn)], dtype=np.float32)
    print("| cosine to the | of | 5 % | 25 % | 50 % | 75 % | 95 % |\n|---|---|---|---|---|---|---|")
    for rank, name in ((0, "nearest"), (9, "tenth nearest")):
        for whose, probes, among in (("real", real[:2000], real), ("made", made[:2000], made)):
            print_quantiles(f"{name} | {whose}", neighbours(probes, among, 10)[0][:, rank])
    for whose, among in (("real", real), ("made", made)):
        print_quantiles(
            f"nearest | queries in {whose}", faiss.knn(queries, among, 1, metric=faiss.METRIC_INNER_PRODUCT)[0]
        )


def print_quantiles(label: str, values: Vectors) -> None:
    """Print a row."""
    print(
        f"| {label} | "
        + " | ".join(f"{value:.3f}" for value in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
        + " |"
    )


def exact(vectors: Any, queries: Vectors, count: int) -> NDArray[np.int64]:
    """Return the rows of the nearest `count` vectors of each query."""
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32)
        found = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack([scores, found[0]]), np.hstack([rows, found[1] + start])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return rows


class Coarse:
    """Centroids and the list of every vector, made once for all kinds: they are the longest part of a build."""

    def __init__(self, vectors: Any, num_lists: int, file: Path) -> None:
        drawn = np.sort(np.random.default_rng(0).choice(len(vectors), min(64 * num_lists, len(vectors)), replace=False))
        self.sample = np.asarray(vectors[drawn], dtype=np.float32)
        if not file.exists():
            self._make(vectors, num_lists, file)
        with np.load(file, allow_pickle=False) as kept:
            self.centroids, self.lists, self.seconds = kept["centroids"], kept["lists"], float(kept["seconds"])
        print(f"coarse: {num_lists} lists, {self.seconds:.0f} s of CPU", flush=True)

    def _make(self, vectors: Any, num_lists: int, file: Path) -> None:
        started = time.process_time()
        kmeans = faiss.Kmeans(vectors.shape[1], num_lists, niter=8, spherical=True)
        kmeans.train(self.sample)
        blocks = (np.asarray(vectors[start : start + _BLOCK], np.float32) for start in range(0, len(vectors), _BLOCK))
        lists = np.concatenate([kmeans.index.search(block, 1)[1][:, 0] for block in blocks])
        np.savez(file, centroids=kmeans.centroids, lists=lists, seconds=time.process_time() - started)


def build(name: str, vectors: Any, coarse: Coarse) -> faiss.Index:
    """Return the index that FAISS's name says, with the common lists: what build_vector_index makes, sooner."""
    index = faiss.index_factory(vectors.shape[1], name, faiss.METRIC_INNER_PRODUCT)
    kept = without_warnings(index, vectors.shape[1])
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    layers = [faiss.downcast_index(index)]
    while type(layers[-1]) is not type(faiss.downcast_index(lists)):
        below = layers[-1].base_index if isinstance(layers[-1], faiss.IndexRefine) else layers[-1].index
        layers.append(faiss.downcast_index(below))
    rotation = next((faiss.downcast_VectorTransform(one.chain.at(0)) for one in layers if hasattr(one, "chain")), None)
    if rotation is not None:
        rotation.train(coarse.sample)
    rotate = rotation.apply if rotation is not None else lambda block: block
    lists.quantizer.add(rotate(coarse.centroids))
    index.train(coarse.sample[:_TRAIN_FINE])
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK], dtype=np.float32)
        rotated, assigned = rotate(block), np.ascontiguousarray(coarse.lists[start : start + _BLOCK])
        lists.add_core(len(block), faiss.swig_ptr(rotated), None, faiss.swig_ptr(assigned))
        if hasattr(layers[0], "refine_index"):
            layers[0].refine_index.add(block)
    for layer in layers:
        layer.ntotal = len(vectors)
    del kept
    return index


def measure(options: argparse.Namespace) -> None:
    """Print the table, and append its rows to measured.jsonl."""
    vectors = np.load(options.out / "vectors.npy", mmap_mode="r", allow_pickle=False)[: options.only_first]
    queries = np.load(options.out / "queries.npy", allow_pickle=False)
    truth_file = options.out / f"truth-{len(vectors)}.npy"
    started = time.process_time()
    if not truth_file.exists():
        np.save(truth_file, exact(vectors, queries, 10))
    truth = np.load(truth_file, allow_pickle=False)
    print(
        f"{len(vectors)} vectors, {len(queries)} queries; exact search {time.process_time() - started:.0f} s",
        flush=True,
    )
    coarse = Coarse(vectors, options.lists, options.out / f"coarse-{len(vectors)}-{options.lists}.npz")
    print(HEADER, flush=True)
    for kind in options.kinds.split(","):
        started = time.process_time()
        name, bytes_a_vector = KINDS[kind].replace("L", str(options.lists), 1), 0.0
        index = build(name, vectors, coarse)
        built = time.process_time() - started + coarse.seconds
        bytes_a_vector = len(faiss.serialize_index(index)) / len(vectors)
        for probes in map(int, options.probes.split(",")):
            for candidates in map(int, options.candidates.split(",") if "Refine" in name or "disk" in kind else ["1"]):
                report(kind, index, vectors, queries, truth, probes, candidates, (bytes_a_vector, built), options)


def report(
    kind: str,
    index: faiss.Index,
    vectors: Any,
    queries: Vectors,
    truth: NDArray[np.int64],
    probes: int,
    candidates: int,
    built: tuple[float, float],
    options: argparse.Namespace,
) -> None:
    """Search, and print one row."""
    parameters = faiss.ParameterSpace()
    parameters.set_index_parameter(index, "nprobe", probes)
    if isinstance(faiss.downcast_index(index), faiss.IndexRefine):
        parameters.set_index_parameter(index, "k_factor_rf", candidates)
    searched = Refined(index, Rows(vectors), candidates) if kind.endswith("disk") else index
    started, processed = time.perf_counter(), time.process_time()
    _, found = searched.search(queries, 10)
    rate = len(queries) / (time.process_time() - processed)
    wall = time.perf_counter() - started
    # A refined search for ten looks at more candidates than one for three: each number of hits is asked for by itself.
    plain = searched is index and not isinstance(faiss.downcast_index(index), faiss.IndexRefine)
    answers = {k: found[:, :k] if plain or k == 10 else searched.search(queries, k)[1] for k in (1, 3, 10)}
    recalls = [
        np.mean([len(set(a) & set(b)) / k for a, b in zip(truth[:, :k], answers[k], strict=True)]) for k in answers
    ]
    row = {"kind": kind, "probes": probes, "candidates": candidates, "vectors": len(vectors), "lists": options.lists}
    row |= {
        "bytes": built[0],
        "build_cpu_s": built[1],
        "recall": [float(r) for r in recalls],
        "qps_cpu": rate,
        "wall": wall,
    }
    with (options.out / "measured.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    cells = [
        kind,
        probes,
        candidates,
        f"{built[0]:.0f}",
        *(f"{r:.3f}" for r in recalls),
        f"{rate:.0f}",
        f"{built[1]:.0f}",
    ]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


class Rows:
    """Rows of an array on disk."""

    def __init__(self, vectors: Any) -> None:
        self.vectors = vectors

    def rows(self, rows: NDArray[np.int64]) -> Vectors:
        return np.asarray(self.vectors[rows], dtype=np.float32)


HEADER = (
    "| kind | lists probed | candidates | bytes a vector | recall@1 | recall@3 | recall@10 | queries/s | build s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
KINDS = {
    "ivf_sq8": "IVFL,SQ8",
    "ivf_sq6": "IVFL,SQ6",
    "ivf_sq6_disk": "IVFL,SQ6",
    "ivf_sq4": "IVFL,SQ4",
    "ivf_sq4_disk": "IVFL,SQ4",
    "ivf_pq96": "IVFL,PQ96",
    "ivf_pq96_disk": "IVFL,PQ96",
    "ivf_opq96_sq6": "OPQ96,IVFL,PQ96,Refine(SQ6)",
}


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["encode", "augment", "measure"])
    parser.add_argument("--model", help="folder of a BERT-like sentence encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the vectors")
    parser.add_argument("--passages", type=int, default=24_000, help="real passages to encode")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="vectors of the augmented set")
    parser.add_argument("--only-first", type=int, default=None, help="measure on the first so many")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--lists", type=int, default=2048)
    parser.add_argument("--probes", default="64,256")
    parser.add_argument("--candidates", default="10", help="for each hit, where kinds compare candidates again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    steps: dict[str, Any] = {"encode": encode_all, "augment": augment, "measure": measure}
    steps[options.step](options)


if __name__ == "__main__":
    main()
