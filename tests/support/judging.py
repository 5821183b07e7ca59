"""A judge over real HTTP, in a thread of the test: chat completions as a script gives them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, str]
"""A status, and the judge's words; with a status that is not 200, the whole body."""


class FakeJudge(ThreadingHTTPServer):
    """Answers requests by `reply`, which is handed the prompt; remembers what it was asked."""

    daemon_threads = True

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self.at_once = 0
        self.guard = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that did not wait for the answer."""

    @property
    def url(self) -> str:
        """The base URL, as settings have it."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        """What was asked, in the order of its coming."""
        return [body["messages"][-1]["content"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    server: FakeJudge

    def do_POST(self) -> None:
        judge = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.guard:
            judge.bodies.append(body)
            judge.keys.append(self.headers.get("Authorization"))
            judge.at_once += 1
            judge.most_at_once = max(judge.most_at_once, judge.at_once)
        status, words = (
            judge.reply(body["messages"][-1]["content"]) if self.path == "/v1/chat/completions" else (404, "")
        )
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": words}}]})
        answer = (content if status == 200 else words).encode()
        with judge.guard:
            judge.at_once -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def judging(reply: Callable[[str], Reply]) -> Iterator[FakeJudge]:
    """A judge that answers until the block ends; its port answers nobody afterwards."""
    judge = FakeJudge(reply)
    thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.shutdown()
        judge.server_close()
        thread.join()
