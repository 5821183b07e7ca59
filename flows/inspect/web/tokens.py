"""The page of one rollout's tokens, as the losses read them: ids, masks, log-probabilities, most probable tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.inspect.web.source import Row, Source
from flows.inspect.web.spans import shades_of
from flows.run.model_files import model_folder
from flows.settings.load import stored_settings
from schemas.errors import UserError

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
    decode, notices = _decoder(source, run), notices_of(list(credit.values()))
    return {
        "record": record,
        "iteration": iteration,
        "rollout": rollout,
        "tokens": [token for turn in turns for token in _tokens_of(turn, credit, decode)],
        "notices": [*notices, _NO_TOKENIZER] if decode is _as_number else notices,
    }


_NO_TOPS = "an earlier version computed this credit: it kept no most probable tokens"
_NO_TOKENIZER = "the run's tokenizer is not on this machine: tokens without credit are shown by number"


def notices_of(credit: Sequence[Row]) -> list[str]:
    """Return what must be said of rows of credit: that the most probable tokens are not with them."""
    return [_NO_TOPS] if credit and not any(row["student_top"] for row in credit) else []


def _tokens_of(turn: Row, credit: dict[int, Row], decode: Decode) -> list[Row]:
    start, queries = turn["token_start"], set(turn["query_positions"])
    own = [
        {
            "position": start + offset, "turn": turn["turn"], "author": "policy", "id": token,
            "text": decode(token), "sampled_logprob": logprob, "in_query": offset in queries,
            **_of_credit(credit.get(start + offset), logprob),
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
        }
        for offset, token in enumerate(turn["observation_token_ids"] or ())
    ]
    return own + reply


def _of_credit(row: Row | None, sampled: float | None) -> Row:
    if row is None:
        return {"credit": None}
    return {"credit": row, "shades": shades_of({**row, "sampled_logprob": sampled}), "text": row["token"]}


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
