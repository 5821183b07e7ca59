"""What an engine did while it sampled, counted as it happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class SamplingStatistics:
    """Counts turns and tokens, and integrates over time how many turns were being generated.

    Turns start and end on different threads.
    """

    clock: Callable[[], float] = time.perf_counter
    num_turns: int = 0
    num_sampled_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_resent_turns: int = 0
    seconds: float = 0.0  # From the first turn sent to the last one ended.
    retrieval_s: float = 0.0  # In which the environment was replying; other turns may continue meanwhile.
    stalled_s: float = 0.0  # In which no turn was being generated: all waited for the environment.
    turn_seconds: float = 0.0  # Seconds times turns that were being generated.
    _running: int = field(default=0, repr=False)
    _since: float | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def started(self, num_turns: int) -> None:
        """Count turns that are sent to the engine."""
        with self._lock:
            self._advance()
            self._running += num_turns

    def ended(self) -> None:
        """Count a turn that the engine no longer works on."""
        with self._lock:
            self._advance()
            self._running -= 1

    def read(self, num_prompt_tokens: int, num_cached_tokens: int, num_sampled_tokens: int) -> None:
        """Count what a turn needed and brought."""
        self.num_turns += 1
        self.num_prompt_tokens += num_prompt_tokens
        self.num_cached_tokens += num_cached_tokens
        self.num_sampled_tokens += num_sampled_tokens

    def stopped(self) -> None:
        """Stop the clock: no conversation goes on."""
        with self._lock:
            self._advance()
            self._running, self._since = 0, None

    def _advance(self) -> None:
        now = self.clock()
        if self._since is not None:
            passed = now - self._since
            self.seconds += passed
            self.turn_seconds += passed * self._running
            self.stalled_s += passed if self._running == 0 else 0.0
        self._since = now

    @property
    def mean_concurrency(self) -> float:
        """Turns being generated at one time, on average."""
        return self.turn_seconds / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Sampled tokens a second."""
        return self.num_sampled_tokens / self.seconds if self.seconds else 0.0

    @property
    def cache_hit_share(self) -> float:
        """Share of the prompts' tokens that the engine had computed before."""
        return self.num_cached_tokens / self.num_prompt_tokens if self.num_prompt_tokens else 0.0
