"""Files of a person's, each changed in one place: settings, questions, passages, model folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from safetensors.numpy import load_file, save_file

from flows.settings.model_folder import MODEL_SETTINGS
from tests.fuzz.bench import Bench, setting

_ODD: Final[Sequence[Any]] = (
    None,
    -1,
    0,
    1,
    7,
    10**12,
    1e308,
    float("nan"),
    "",
    "x",
    "\0",
    "\ud800",
    "\x1b[31m",
    "</search>",
    "x" * 3000,
    [],
    [1],
    {},
    {"a": []},
    True,
)
_TEMPLATES: Final = (
    "{% if %}",
    "{{ raise_exception('no') }}",
    "{{ nothing.at.all }}",
    "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
    "{{ strftime_now('%H:%M:%S.%f') }}{{ messages[0]['content'] }}",
    "constant",
    "",
    "{% for i in range(10**9) %}{% endfor %}",
    [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}],
    {"default": "x"},
    3,
)
_ROW: Final = {"id": "q1", "question": "Which is the capital of Andorra?", "golden_answers": ["Andorra la Vella"]}
_PASSAGE: Final = {"id": "p1", "contents": '"Andorra"\nAndorra is a state of Europe.'}


def draw_files(random: Random, bench: Bench, place: Path) -> tuple[str, list[str]]:
    """Return a settings file and overrides that name a changed file below `place`, a new folder."""
    place.mkdir()
    draw = random.choice((_draw_settings_file, _draw_questions, _draw_corpus, _draw_model, _draw_model))
    return draw(random, bench, place)


def damaged(random: Random, content: bytes) -> bytes:
    """Return bytes with one change: cut, a bit, a run of odd bytes, a mark before them, another encoding, nothing."""
    at = random.randrange(len(content) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: content[:at],
        lambda: content[:at] + bytes([content[at % len(content)] ^ 1 << random.randrange(8)]) + content[at + 1 :],
        lambda: content[:at] + random.choice((b"\0", b"\x1b[2J", b"\xff", b"\r", b"\n", b"[" * 3000)) + content[at:],
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.decode("utf-8", "replace").encode("utf-16"),
        lambda: b"",
    )
    return random.choice(changes)()


def _draw_settings_file(random: Random, bench: Bench, place: Path) -> tuple[str, list[str]]:
    path = place / random.choice(("mine.toml", "ｍine", "a b.toml", "[red].toml"))
    path.write_bytes(damaged(random, Path(bench.config()).read_bytes()))
    return str(path), []


def _draw_questions(random: Random, bench: Bench, place: Path) -> tuple[str, list[str]]:
    for split in ("train", "dev"):
        content = (bench.folder / f"{split}.jsonl").read_bytes()
        (place / f"{split}.jsonl").write_bytes(_changed_rows(random, content, _ROW))
    return bench.config(), [setting("data.questions", f"{place}/{{split}}.jsonl"), *_sometimes_dropped(random)]


def _draw_corpus(random: Random, bench: Bench, place: Path) -> tuple[str, list[str]]:
    path = place / random.choice(("corpus.jsonl", "world", "20181220.jsonl", "my wiki.jsonl", "c.jsonl.gz"))
    path.write_bytes(_changed_rows(random, bench.corpus.read_bytes(), _PASSAGE))
    kind = random.choice(("dense", "bm25", "hybrid"))
    return bench.config(kind), [setting("retrieval.corpus", str(path))]


def _changed_rows(random: Random, content: bytes, row: dict[str, Any]) -> bytes:
    if random.random() < 0.4:
        return damaged(random, content)
    odd = random.choice((*_ODD, "word " * 700))
    changed: Any = row | {random.choice(list(row)): random.choice((odd, [odd]))}
    changed = random.choice((changed, {key: changed[key] for key in list(changed)[1:]}, odd))
    return content + json.dumps(changed).encode() + b"\n"


def _sometimes_dropped(random: Random) -> list[str]:
    return random.choice(([], [], ["data.max_dropped_share=1.0"]))


def _draw_model(random: Random, bench: Bench, place: Path) -> tuple[str, list[str]]:
    folder = bench.model(f"{place.name}-model")
    change = random.choice((_change_json, _change_json, _change_bytes, _change_tensors, _change_template, _remove))
    more = change(random, folder)
    return bench.config(), [setting("model.path", str(folder)), *more]


def _change_json(random: Random, folder: Path) -> list[str]:
    name = random.choice(("config.json", "config.json", "tokenizer_config.json", "generation_config.json"))
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    key = random.choice(list(content))
    if random.random() < 0.3:
        del content[key]
    else:
        content[key] = random.choice(_ODD)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return []


def _change_bytes(random: Random, folder: Path) -> list[str]:
    path = random.choice([*sorted(folder.iterdir()), folder / MODEL_SETTINGS])
    path.write_bytes(damaged(random, path.read_bytes()))
    return []


def _change_tensors(random: Random, folder: Path) -> list[str]:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = random.choice(list(tensors))
    match random.randrange(4):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[name][..., :-1].copy()
        case 2:
            tensors[name] = tensors[name] * float("nan")
        case _:
            tensors[name] = tensors[name].astype("int64")
    save_file(tensors, path, metadata={"format": random.choice(("pt", "tf", "x"))})
    return []


def _change_template(random: Random, folder: Path) -> list[str]:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chat_template"] = random.choice(_TEMPLATES)
    path.write_text(json.dumps(content), encoding="utf-8")
    return ["rollout.template=instruct"]


def _remove(random: Random, folder: Path) -> list[str]:
    path = random.choice(sorted(folder.iterdir()))
    path.unlink()
    if random.random() < 0.3:
        path.mkdir()
    return []
