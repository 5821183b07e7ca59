"""The page of one rollout's tokens, as the losses read them: ids, masks, log-probabilities, teacher's distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from flows.inspect.web.source import Row, Source
from flows.inspect.web.spans import shades_of
from flows.run.model_files import model_folder
from flows.settings.load import stored_settings
from schemas.errors import UserError
from storage.disk.tensors import read_tensor_rows
from storage.errors import StorageError

TOP: Final = 5
Decode = Callable[[int], str]

_WHERE = "WHERE run = $run AND iteration = $i AND rollout_id = $rollout"


def tokens_page(source: Source, run: str, iteration: int, rollout_id: str) -> dict[str, Any]:
    """Return every token of a rollout: who wrote it, the masks it is in, and what was computed of it."""
    record = source.run(run)
    by = {"run": run, "i": iteration, "rollout": rollout_id}
    with source.rows() as rows:
        missing = f"run '{run}' has no rollout '{rollout_id}' in iteration {iteration}"
        rollout = rows.one(missing, f"SELECT * FROM rollouts {_WHERE}", **by)
        turns = rows.all(f"SELECT * FROM turns {_WHERE} ORDER BY turn", **by)
        credit = {row["position"]: row for row in rows.all(f"SELECT * FROM query_credit {_WHERE}", **by)}
        targets = rows.all(f"SELECT * FROM teacher_targets {_WHERE}", **by)
    decode, notices = _decoder(source, run), list[str]()
    top = _top_tokens(source, targets, decode, notices)
    return {
        "record": record,
        "iteration": iteration,
        "rollout": rollout,
        "tokens": [token for turn in turns for token in _tokens_of(turn, credit, top, decode)],
        "notices": [*notices, _NO_TOKENIZER] if decode is _as_number else notices,
    }


_NO_TOKENIZER = "the run's tokenizer is not on this machine: tokens without credit are shown by number"


def add_top_tokens(source: Source, run: str, credit: Sequence[Row], targets: Sequence[Row]) -> list[str]:
    """Give each row of credit the teacher's most probable tokens (`top`), and return why some have none."""
    notices: list[str] = []
    decode = _decoder(source, run)
    top = {target["rollout_id"]: _top_tokens(source, [target], decode, notices) for target in targets}
    for row in credit:
        row["top"] = top.get(row["rollout_id"], {}).get(row["position"], [])
    return list(dict.fromkeys(notices))


def _tokens_of(turn: Row, credit: dict[int, Row], top: dict[int, list[Row]], decode: Decode) -> list[Row]:
    start, queries = turn["token_start"], set(turn["query_positions"])
    own = [
        {
            "position": start + offset, "turn": turn["turn"], "author": "policy", "id": token,
            "text": decode(token), "sampled_logprob": logprob, "in_query": offset in queries,
            **_of_credit(credit.get(start + offset), logprob), "top": top.get(start + offset, []),
        }
        for offset, (token, logprob) in enumerate(zip(turn["token_ids"], turn["sampled_logprobs"], strict=True))
    ]  # fmt: skip
    first = start + len(own)
    reply = [
        {
            "position": first + offset,
            "turn": turn["turn"],
            "author": "environment",
            "id": token,
            "text": decode(token),
            "top": [],
        }
        for offset, token in enumerate(turn["observation_token_ids"] or ())
    ]
    return own + reply


def _of_credit(row: Row | None, sampled: float | None) -> Row:
    if row is None:
        return {"credit": None}
    return {"credit": row, "shades": shades_of({**row, "sampled_logprob": sampled}), "text": row["token"]}


def _top_tokens(source: Source, targets: Sequence[Row], decode: Decode, notices: list[str]) -> dict[int, list[Row]]:
    """Return the teacher's most probable tokens at each distilled position, none where its file is gone."""
    found: dict[int, list[Row]] = {}
    for target in targets:
        path = source.workspace.root / target["tensor_path"]
        try:
            stored = read_tensor_rows(path, target["row_start"], target["num_rows"])
        except StorageError as error:
            notices.append(f"the teacher's most probable tokens are not shown: {error}")
            continue
        for position, ids, logprobs in zip(target["positions"], stored["ids"], stored["logprobs"], strict=True):
            order = sorted(range(len(ids)), key=lambda k: -logprobs[k])[:TOP]
            found[position] = [{"text": decode(int(ids[k])), "logprob": float(logprobs[k])} for k in order]
    return found


def _as_number(token: int) -> str:
    return f"⟨{token}⟩"


def _decoder(source: Source, run: str) -> Decode:
    """Return what gives a token's text: the run's own tokenizer where its file is on this machine."""
    try:
        path = stored_settings(source.run(run)).model.path
    except UserError:
        return _as_number
    file = Path(model_folder(path)) / "tokenizer.json"
    return _from_file(file) if file.is_file() else _as_number


@lru_cache(maxsize=4)
def _from_file(file: Path) -> Decode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def decode(token: int) -> str:
        return str(tokenizer.decode([token], skip_special_tokens=False))

    return decode
