"""Odd values for every leaf of the settings tree, by its type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flows.console.errors import UserError
from flows.settings.load import load_settings
from schemas.settings.root import Settings
from schemas.settings.tree import kind_of, sections_of
from tests.fuzz.bench import Bench, setting

_NUMBERS: Final = ("0", "-1", "1", "2", "3", "64", "1000000", "4294967296", "9223372036854775808", "1" + "0" * 40)
_REALS: Final = ("0.0", "-0.0", "-1.5", "1e-300", "1e300", "1e999", "nan", "inf", "-inf", "0.5", "1", "_1", "1__0")
_TEXTS: Final = (
    "''",
    "' '",
    '"\\u0000"',
    '"\\u001b[31m"',
    '"a\\nb"',
    "[red]x",
    "ｍini",
    "mіni",  # the second letter is Cyrillic
    "~",
    "~/nothing",
    "~nobody/x",
    "..",
    "/dev/null",
    "/proc/self/environ",
    "{dataset}",
    "{split",
    "hub:",
    "hub:a/b",
    "http://127.0.0.1:port",
    "a/b/c",
    "'q_proj['",
    "(",
    "meta",
    "cuda:99",
    "cpu:7",
    "x" * 5000,
)
_OTHER_TYPES: Final = ("[]", "[1]", "['a', 'a']", "[[]]", "{a = 1}", "1979-05-27", "true", "'true'", "word", "=", "'")
_TWO_SHARE: Final = 0.2
# Each takes minutes or more memory than a machine has, and is the same to a program as the next smaller one.
_TOO_LONG: Final = ("model.torch_threads", "retrieval.encoder.num_dimensions", "model.lora_rank")


class Leaf(NamedTuple):
    """A setting, and what chooses the kind of the sections above it: `a.kind=x` each."""

    name: str
    field: FieldInfo
    chosen: tuple[str, ...]

    def config(self, bench: Bench) -> str:
        """Return the settings file that has the kinds which need more than their name."""
        kinds = dict(text.split("=") for text in self.chosen)
        retriever = kinds.get("retrieval.kind", "dense")
        return bench.config(f"{retriever}_neural" if kinds.get("retrieval.encoder.kind") == "hf" else retriever)

    @property
    def overrides(self) -> list[str]:
        """What chooses the other kinds, and what these need."""
        words = [text for text in self.chosen if not text.startswith("retrieval.kind=")]
        servers = [setting("sampling.urls", ["http://127.0.0.1:9"])]
        return words + servers * ("sampling.kind=vllm_server" in words)


def leaves(section: type[BaseModel] = Settings, prefix: str = "", chosen: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield every leaf below a section, for each kind that may be chosen."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        below = sections_of(field.annotation)
        for part in below:
            kind = kind_of(part)
            yield from leaves(part, f"{path}.", (*chosen, *([f"{path}.kind={kind}"] if kind else [])))
        if not below:
            yield Leaf(path, field, chosen)


def odd_values(leaf: Leaf, bench: Bench) -> list[str]:
    """Return the values that a leaf is tried with, as `--set` takes them."""
    paths = [str(path) for path in odd_paths(bench)]
    numbers = _NUMBERS[:6] if leaf.name in _TOO_LONG else _NUMBERS
    by_type: dict[Any, Sequence[str]] = {int: numbers, float: (*_NUMBERS[:6], *_REALS), bool: ("true", "false", "1")}
    annotation = leaf.field.annotation
    if get_origin(annotation) is Literal:
        own: Sequence[str] = [str(choice) for choice in get_args(annotation)]
    else:
        own = by_type.get(annotation, (*_TEXTS, *paths))
    return [*own, *_OTHER_TYPES]


def odd_paths(bench: Bench) -> list[Path]:
    """Return paths that name no file as it is expected."""
    folder = bench.folder / "odd"
    folder.mkdir(exist_ok=True)
    files = {
        "empty.jsonl": b"",
        "binary.jsonl": bytes(range(256)) * 4,
        "mark.jsonl": b"\xef\xbb\xbf{}\n",
        "wide.jsonl": "{}\n".encode("utf-16"),
        "nested.jsonl": b"[" * 100_000 + b"]" * 100_000 + b"\n",
        "packed.jsonl.gz": b"no gzip",
        "packed.jsonl.zst": b"no zstd",
        "table.parquet": b"PAR1",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder, folder / "missing.jsonl", *(folder / name for name in files)]


def draw_settings(random: Random, bench: Bench, known: Sequence[Leaf]) -> tuple[str, list[str]]:
    """Return a settings file and an odd value of one leaf, sometimes one of another leaf that needs no kind."""
    leaf, other = random.choice(known), random.choice([other for other in known if not other.chosen])
    drawn = [leaf, *([other] if random.random() < _TWO_SHARE else [])]
    values = [f"{drawn.name}={random.choice(odd_values(drawn, bench))}" for drawn in drawn]
    return leaf.config(bench), [*leaf.overrides, *values]


def draw_choices(random: Random, bench: Bench) -> tuple[str, list[str]]:
    """Return a settings file and overrides that choose one of what is allowed wherever settings name what is.

    Nothing is chosen that needs another machine, and nothing that does not go together.
    """
    while True:
        kind = random.choice(("dense", "bm25", "hybrid"))
        overrides = [
            f"{leaf.name}={random.choice(_choices(leaf.field))}"
            for leaf in leaves()
            if not leaf.chosen and leaf.name not in ("model.attention", "model.dtype") and _choices(leaf.field)
        ]
        try:
            load_settings(bench.config(kind), overrides)
        except UserError:
            continue
        return bench.config(kind), overrides


def _choices(field: FieldInfo) -> list[str]:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return ["true", "false"] if annotation is bool else []
