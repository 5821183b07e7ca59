"""Part e: the transformers sampler: tokens/s at two batch sizes, and where the time goes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from gpu_common import Bench, Shape, make_qwen, wait
from gpu_teacher import NoWords

from sdsearch.sampling.ports import SampledTurn, TurnRequest
from sdsearch.sampling.transformers_sampler import TransformersSampler

GROUP_SIZE, SEARCHES = 5, 2


class Script:
    """An environment that replies with drawn tokens, `SEARCHES` times, to turns of drawn lengths."""

    def __init__(self, num_questions: int, vocabulary: int, prompt: int, turn: int, reply: int) -> None:
        self._draw = random.Random(0)
        self._vocabulary, self._turn, self._reply = vocabulary, turn, reply
        self._num_turns: dict[str, int] = {}
        self.num_sampled = 0
        prompts = [self._tokens(prompt) for _ in range(num_questions)]
        self.openings = [
            self._request(f"{number}/{index}", tokens)
            for number, tokens in enumerate(prompts)
            for index in range(GROUP_SIZE)
        ]

    def respond(self, turns: Sequence[SampledTurn]) -> list[TurnRequest]:
        """Reply to whoever has searches left."""
        self.num_sampled += sum(len(turn.token_ids) for turn in turns)
        going = [turn.key for turn in turns if self._num_turns[turn.key] <= SEARCHES]
        return [self._request(key, self._tokens(self._reply)) for key in going]

    def _request(self, key: str, tokens: tuple[int, ...]) -> TurnRequest:
        self._num_turns[key] = self._num_turns.get(key, 0) + 1
        length = self._draw.randint(self._turn // 2, self._turn * 3 // 2)
        return TurnRequest(key, tokens, self._draw.getrandbits(32), length, 1.0)

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._draw.choices(range(self._vocabulary), k=count))


def run(bench: Bench) -> None:
    """Write a row a batch size with the speed, and one with what a profiler sees of the smaller batch."""
    shape = bench.shapes[0]
    model = make_qwen(shape, bench.device, torch.bfloat16 if bench.is_cuda else torch.float32, "split")
    sampler = TransformersSampler(model, NoWords())
    for questions in (2, 4) if bench.small else (16, 64):
        with bench.case(20.0 * (not bench.small), size=shape.name, batch=f"{questions} x {GROUP_SIZE}") as row:
            if "skip" not in row:
                row.update(speed(bench, sampler, shape, questions))
    with bench.case(15.0 * (not bench.small), size=shape.name, batch="profile") as row:
        if "skip" not in row:
            row.update(profile(bench, sampler, shape, 2 if bench.small else 16))


def script(bench: Bench, shape: Shape, questions: int) -> Script:
    lengths = (16, 8, 12) if bench.small else (200, 64, 420)
    return Script(questions, shape.vocabulary, *lengths)


def speed(bench: Bench, sampler: TransformersSampler, shape: Shape, questions: int) -> dict[str, Any]:
    """Return sampled tokens and rollouts a second, of the second of two passes."""
    for _ in range(2):
        environment = script(bench, shape, questions)
        wait(bench.device)
        began = time.perf_counter()
        sampler.converse(environment.openings, environment.respond)
        wait(bench.device)
        seconds = time.perf_counter() - began
    return {
        "tokens/s": environment.num_sampled / seconds,
        "rollouts/s": len(environment.openings) / seconds,
        "seconds": seconds,
    }


def profile(bench: Bench, sampler: TransformersSampler, shape: Shape, questions: int) -> dict[str, Any]:
    """Return how much of the time the device is busy, and launches and copies to the host for a sampled token step."""
    environment = script(bench, shape, questions)
    wait(bench.device)
    began = time.perf_counter()
    with torch.profiler.profile() as profiler:
        sampler.converse(environment.openings, environment.respond)
        wait(bench.device)
    wall_s = time.perf_counter() - began
    events = profiler.key_averages()
    busy_us = sum(event.self_device_time_total for event in events) if bench.is_cuda else 0.0
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    copies = sum(event.count for event in events if "Memcpy DtoH" in event.key)
    slowest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:4]
    return {
        "seconds": wall_s,
        "device busy": busy_us / 1e6 / wall_s if bench.is_cuda else None,
        "launches": launches,
        "copies to host": copies,
        "host time in": ", ".join(f"{event.key} {event.self_cpu_time_total / 1e6:.2f} s" for event in slowest),
    }
