"""A judge of answers: a model behind a server with OpenAI's chat completions, asked for yes or no.

Never a reward: what a policy is trained on comes from golden answers alone.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final, NamedTuple

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from schemas.base import hash_json
from schemas.errors import UserError
from schemas.settings.judge import PLACES, JudgeSettings
from sdsearch.connections import bounded_answer, client_options, describe_failure

_MAX_BYTES: Final = 1 << 20
_LONGEST_PAUSE_S: Final = 30.0
_SHOWN: Final = 120
# Busy, or at fault for the moment; what else is not 200 would be said again.
_PASSING: Final = (408, 409, 425, 429)
_PLACE: Final = re.compile("|".join(re.escape(place) for place in PLACES))
# Models that think aloud may end with their verdict alone.
_THOUGHT: Final = re.compile(r".*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_WORD: Final = re.compile(r"[^\W_]+")
_VERDICTS: Final = {"yes": True, "no": False}


class Judged(NamedTuple):
    """An answer to be judged, which follows from nothing else."""

    question: str
    golden_answers: tuple[str, ...]
    answer: str


class Verdict(NamedTuple):
    """Whether an answer is right, and the reply that says so."""

    right: bool
    reply: str


class JudgeError(UserError):
    """The judge gave no verdict; what it said before stays."""


class _PassingError(Exception):
    """Another attempt may go better."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice]


class Judge:
    """Asks the server that the settings name; safe to use from several threads."""

    def __init__(self, settings: JudgeSettings, key: str = "", sleep: Callable[[float], None] = time.sleep) -> None:
        """Talk to the server with `key`, which no message of ours shows. UserError for what cannot be a URL."""
        self._settings = settings
        self._url = settings.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._sleep = sleep
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        options = client_options([settings.url], "evaluation.judge.url")
        is_encrypted = settings.url.startswith("https:")
        self._client = httpx.Client(timeout=settings.timeout_s, headers=headers, verify=is_encrypted, **options)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def judge(self, case: Judged) -> Verdict:
        """Return the verdict on one answer; JudgeError, which says where, what and what to do, where there is none."""
        num_attempts = self._settings.retries + 1
        attempts = Retrying(
            retry=retry_if_exception_type(_PassingError),
            stop=stop_after_attempt(num_attempts),
            wait=wait_exponential(multiplier=0.5, max=_LONGEST_PAUSE_S) + wait_random(0, 0.5),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return attempts(self._ask, case)
        except _PassingError as error:
            tried = f" ({num_attempts} attempts)" if num_attempts > 1 else ""
            raise JudgeError(f"the judge at {self._url} gave no verdict{tried}: {error}") from error

    def _ask(self, case: Judged) -> Verdict:
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": prompt_of(self._settings.prompt, case)}],
            "temperature": 0,
        }
        try:
            status, _, content = bounded_answer(
                self._client, "POST", self._url, self._settings.timeout_s, _MAX_BYTES, json=body
            )
        except (httpx.HTTPError, ValueError) as error:
            remedy = "start it, correct evaluation.judge.url, or raise evaluation.judge.timeout_s"
            raise _PassingError(f"{describe_failure(error)}; {remedy}") from error
        said = content[:_SHOWN].decode("utf-8", "replace")
        if status >= 500 or status in _PASSING:
            raise _PassingError(f"status {status}, {said!r}; look at the server, or lower evaluation.judge.concurrency")
        if status != 200:
            raise JudgeError(
                f"the judge at {self._url} refused: status {status}, {said!r}; correct evaluation.judge.url, .model or "
                ".api_key_env"
            )
        return read_verdict(_text(content))


def prompt_of(template: str, case: Judged) -> str:
    """Return what the judge is asked; texts are put in once, so that one of them cannot bring a place of its own."""
    golden = "; ".join(_one_line(answer) for answer in case.golden_answers)
    texts = dict(zip(PLACES, (_one_line(case.question), golden, _one_line(case.answer)), strict=True))
    return _PLACE.sub(lambda found: texts[found[0]], template)


def read_verdict(reply: str) -> Verdict:
    """Return what a reply says: its first word, or else its last one, after any thoughts, is yes or no.

    Raises an error that another attempt may mend where it is neither.
    """
    words = _WORD.findall(_THOUGHT.sub("", reply).lower())
    for word in (words[0], words[-1]) if words else ():
        if word in _VERDICTS:
            return Verdict(_VERDICTS[word], reply)
    raise _PassingError(
        f"its reply is neither yes nor no: {reply[:_SHOWN]!r}; change evaluation.judge.prompt, or take another "
        "evaluation.judge.model"
    )


def case_key(model: str, prompt: str, case: Judged) -> str:
    """Return what a verdict belongs to: the judge, what it is asked, and the answer."""
    return hash_json([model, prompt, case.question, list(case.golden_answers), case.answer])


def judge_all(judge: Judge, cases: Sequence[Judged], concurrency: int, keep: Callable[[Judged, Verdict], None]) -> None:
    """Judge the cases, `concurrency` at one time; `keep` is handed each verdict as it comes, in this thread.

    After the first failure nothing more is asked, what is under way is kept too, and the JudgeError is raised.
    """
    has_failed = threading.Event()

    def ask(case: Judged) -> Verdict | None:
        if has_failed.is_set():
            return None
        try:
            return judge.judge(case)
        except BaseException:
            has_failed.set()  # Before another case is begun.
            raise

    pool = ThreadPoolExecutor(max_workers=concurrency)
    failures: list[BaseException] = []
    try:
        asked = {pool.submit(ask, case): case for case in cases}
        for future in as_completed(asked):
            if (error := future.exception()) is not None:
                failures.append(error)
            elif (verdict := future.result()) is not None:
                keep(asked[future], verdict)
    finally:
        has_failed.set()
        pool.shutdown(cancel_futures=True)
    if failures:
        raise failures[0]


def _text(content: bytes) -> str:
    try:
        completion = _Completion.model_validate_json(content)
        return completion.choices[0].message.content or ""
    except (ValidationError, IndexError) as error:
        said = content[:_SHOWN].decode("utf-8", "replace")
        raise _PassingError(
            f"its answer is no chat completion: {said!r}; evaluation.judge.url must be the base URL of an OpenAI-"
            "compatible server, such as http://127.0.0.1:8000/v1"
        ) from error


def _one_line(text: str) -> str:
    return " ".join(text.split())
