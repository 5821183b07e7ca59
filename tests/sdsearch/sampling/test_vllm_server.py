"""The client of vLLM servers against a fake of their interface: spreading, retiring, adapters, requests."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from sdsearch.sampling.ports import TurnRequest
from sdsearch.sampling.statistics import SamplingStatistics
from sdsearch.sampling.vllm_client import ServerOptions
from sdsearch.sampling.vllm_server import VllmServers
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError
from sdsearch.sampling.vllm_weights import PolicyWeights


@dataclass
class FakeServers:
    """What two servers answer; a request to a host in `dead` finds nobody."""

    dead: set[str] = field(default_factory=set)
    ill: set[str] = field(default_factory=set)
    adapters: dict[str, dict[str, str]] = field(default_factory=lambda: {"one": {}, "two": {}})
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda host, path: None
    logprobs: list[float | None] = field(default_factory=lambda: [-0.5, -0.25])
    ranks: dict[str, int] = field(default_factory=dict)
    served: list[tuple[str, str | None]] = field(default_factory=list)
    """The host and the data-parallel rank that each turn was asked from."""

    def completion(self, request: httpx.Request, body: dict) -> httpx.Response:
        host, rank = request.url.host, request.headers.get("X-data-parallel-rank")
        if rank is not None and int(rank) >= (ranks := self.ranks.get(host, 1)):
            return httpx.Response(400, text=f"data_parallel_rank {rank} is out of range [0, {ranks}).")
        self.served.append((host, rank))
        choice = {
            "token_ids": [5, 6],
            "logprobs": {"token_logprobs": self.logprobs},
            "finish_reason": "stop",
            "stop_reason": "</search>",
            "prompt_logprobs": [None, *({str(t): {"logprob": -1.0 - int(rank or 0)}} for t in body["prompt"][1:])],
        }
        usage = {"prompt_tokens_details": {"cached_tokens": 3}}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    async def handle(self, request: httpx.Request) -> httpx.Response:
        host, path = request.url.host, request.url.path
        body = json.loads(request.content) if request.content else {}
        await asyncio.sleep(0)
        self.before(host, path)
        if host in self.dead:
            raise httpx.ConnectError("nobody there")
        if host in self.ill:
            return httpx.Response(500, text="EngineDeadError")
        self.requests.append((host, path, body))
        match path:
            case "/v1/models":
                names = [{"id": "base", "root": "/base", "parent": None, "max_model_len": 512}]
                adapters = [{"id": name, "root": root, "parent": "base"} for name, root in self.adapters[host].items()]
                return httpx.Response(200, json={"data": names + adapters})
            case "/v1/load_lora_adapter":
                self.adapters[host][body["lora_name"]] = body["lora_path"]
                return httpx.Response(200, text="Success")
            case "/v1/unload_lora_adapter":
                del self.adapters[host][body["lora_name"]]
                return httpx.Response(200, text="Success")
            case "/v1/completions":
                return self.completion(request, body)
        return httpx.Response(404, json={"detail": "Not Found"})


def servers(fake: FakeServers, **changes: object) -> tuple[VllmServers, SamplingStatistics]:
    options = {
        "run": "mine",
        "urls": ("http://one:8000/", "http://two:8000"),
        "api_key": "",
        "timeout_s": 5.0,
        "max_num_seqs": 4,
        "max_model_len": 512,
        "end_ids": (1,),
        "adapters": True,
        "workspace_here": "/here/workspace",
        "workspace_there": "/there",
        **changes,
    }
    statistics = SamplingStatistics()
    return VllmServers(ServerOptions(**options), statistics, httpx.MockTransport(fake.handle)), statistics


def prompt(group: int, index: int = 0) -> Prompt:
    tokens = (7, 8, 9)
    return Prompt(tokens, TurnRequest(f"00001/q{group}/{index}", tokens, 2**63 - 1, 40, 0.7))


async def many(engine: VllmServers, num_groups: int, size: int = 3) -> list[EngineTurn]:
    prompts = [prompt(group, index) for group in range(num_groups) for index in range(size)]
    return await asyncio.gather(*(engine.generate(prompt) for prompt in prompts))


BASE = PolicyWeights(0, "base", "/base")


def adapter(version: int) -> PolicyWeights:
    return PolicyWeights(version, "adapter", f"/here/workspace/checkpoints/version={version}")


def test_groups_are_spread_and_siblings_stay_together() -> None:
    fake = FakeServers()
    engine, _ = servers(fake)

    async def run() -> None:
        await engine.load(BASE)
        turns = await many(engine, 6)
        assert turns == [EngineTurn((5, 6), (-0.5, -0.25), 3, "</search>")] * 18

    asyncio.run(run())
    assert Counter(fake.served) == {("one", None): 9, ("two", None): 9}
    bodies = [body for _, path, body in fake.requests if path == "/v1/completions" and "seed" in body]
    assert {(body["seed"], body["temperature"], body["model"], tuple(body["prompt"])) for body in bodies} == {
        (2**63 - 1, 0.7, "base", (7, 8, 9))
    }
    plain = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "include_stop_str_in_output": True}
    assert all(plain.items() <= body.items() for body in bodies), "nothing is left to the server's defaults"


@pytest.mark.parametrize("how", ["dead", "ill"])
def test_a_server_that_dies_is_retired_and_its_turns_are_sent_again(how: str) -> None:
    fake = FakeServers()
    engine, statistics = servers(fake)

    def die_after_four(host: str, path: str) -> None:
        done = fake.served.count(("one", None))
        if path == "/v1/completions" and done >= 4:
            getattr(fake, how).add("one")

    async def run() -> list[EngineTurn]:
        await engine.load(BASE)
        fake.before = die_after_four
        return await many(engine, 8)

    assert len(asyncio.run(run())) == 24
    assert statistics.num_resent_turns > 0
    assert fake.served.count(("two", None)) == 20, "all that server one did not finish"


def test_when_no_server_answers_it_says_why_and_how_to_go_on() -> None:
    fake = FakeServers(dead={"one"}, ill={"two"})
    engine, _ = servers(fake)
    with pytest.raises(SamplerError) as caught:
        asyncio.run(engine.load(BASE))
    for words in ("http://one:8000: ConnectError nobody there", "http://two:8000: status 500", "resume the run"):
        assert words in str(caught.value)


def test_a_retired_server_is_tried_again_with_the_next_weights() -> None:
    fake = FakeServers(dead={"one"})
    engine, _ = servers(fake)

    async def run() -> list[set[str]]:
        hosts = []
        for version in (1, 2):
            await engine.load(adapter(version))
            fake.requests.clear()
            await many(engine, 4)
            hosts.append({host for host, _, _ in fake.requests})
            fake.dead.clear()
        return hosts

    assert asyncio.run(run()) == [{"two"}, {"one", "two"}]


def test_each_version_is_an_adapter_of_its_own_and_former_ones_are_dropped() -> None:
    fake = FakeServers(adapters={"one": {"sdsearch-mine-left-behind": "/x", "sdsearch-other-1": "/y"}, "two": {}})
    engine, _ = servers(fake)
    names: list[str] = []

    async def run() -> None:
        for weights in (BASE, adapter(1), adapter(2), adapter(1)):
            await engine.load(weights)
            await engine.generate(prompt(0))
            names.append(fake.requests[-1][2]["model"])
            present = {name for name in fake.adapters["one"] if name != "sdsearch-other-1"}
            assert present == ({names[-1]} if weights.version else set())

    asyncio.run(run())
    assert names[0] == "base"
    assert len(set(names)) == 4, "no name is used twice: the server would answer from the former one's cache"
    paths = {body["lora_path"] for _, path, body in fake.requests if path == "/v1/load_lora_adapter"}
    assert paths == {"/there/checkpoints/version=1", "/there/checkpoints/version=2"}
    assert "sdsearch-other-1" in fake.adapters["one"], "another run's adapter stays"


def test_full_tuning_needs_the_development_mode_and_says_so() -> None:
    engine, _ = servers(FakeServers(), adapters=False)
    with pytest.raises(SamplerError, match=r"collective_rpc answered status 404.*VLLM_SERVER_DEV_MODE=1, or model.tun"):
        asyncio.run(engine.load(PolicyWeights(1, "full", "/here/workspace/x")))


def test_a_server_with_too_short_a_context_is_refused() -> None:
    engine, _ = servers(FakeServers(), max_model_len=1024)
    with pytest.raises(SamplerError, match=r"reads at most 512 tokens.*1024.*max-model-len"):
        asyncio.run(engine.load(BASE))


def test_logprobs_that_are_missing_or_not_finite_are_none() -> None:
    fake = FakeServers(logprobs=[None, -9999.0])
    engine, _ = servers(fake)

    async def run() -> EngineTurn:
        await engine.load(BASE)
        return await engine.generate(prompt(0))

    assert asyncio.run(run()).logprobs == (None, None)


def test_every_server_reads_the_probe() -> None:
    engine, _ = servers(FakeServers())

    async def run() -> list[tuple[str, tuple[float | None, ...]]]:
        await engine.load(BASE)
        return [(reading.engine, reading.text_logprobs) for reading in await engine.read(prompt(0))]

    assert asyncio.run(run()) == [(f"the server http://{name}:8000", (-1.0, -1.0)) for name in ("one", "two")]


def test_siblings_stay_on_one_data_parallel_rank_and_groups_are_spread_over_all() -> None:
    fake = FakeServers(ranks={"one": 3})
    engine, _ = servers(fake)

    async def run() -> list[tuple[str, str | None]]:
        await engine.load(BASE)
        homes = []
        for group in range(8):
            fake.served.clear()
            await many_of(engine, group)
            (home,) = set(fake.served)
            homes.append(home)
        return homes

    async def many_of(engine: VllmServers, group: int) -> None:
        await asyncio.gather(*(engine.generate(prompt(group, index)) for index in range(3)))

    homes = asyncio.run(run())
    assert Counter(homes) == {("one", "0"): 2, ("one", "1"): 2, ("one", "2"): 2, ("two", None): 2}


def test_every_data_parallel_rank_reads_the_probe() -> None:
    fake = FakeServers(ranks={"two": 2})
    engine, _ = servers(fake)

    async def run() -> list[tuple[str, tuple[float | None, ...]]]:
        await engine.load(BASE)
        return [(reading.engine, reading.text_logprobs) for reading in await engine.read(prompt(0))]

    assert asyncio.run(run()) == [
        ("the server http://one:8000", (-1.0, -1.0)),
        ("data-parallel rank 0 of the server http://two:8000", (-1.0, -1.0)),
        ("data-parallel rank 1 of the server http://two:8000", (-2.0, -2.0)),
    ]
    turns_and_text = 3
    assert Counter(fake.served) == dict.fromkeys([("one", None), ("two", "0"), ("two", "1")], turns_and_text)


def test_a_server_that_knows_no_ranks_is_one_replica() -> None:
    """Such as one behind a proxy that drops the header: it answers instead of refusing a rank that is none."""
    fake = FakeServers(ranks={"one": 2**40, "two": 2**40})
    engine, _ = servers(fake)

    async def run() -> int:
        await engine.load(BASE)
        return len(await engine.read(prompt(0)))

    assert asyncio.run(run()) == 2


def test_a_server_that_dies_in_the_probe_is_retired_with_all_its_ranks() -> None:
    fake = FakeServers(ranks={"one": 2, "two": 2})
    engine, _ = servers(fake)

    async def run() -> list[str]:
        await engine.load(BASE)
        fake.dead.add("one")
        return [reading.engine for reading in await engine.read(prompt(0))]

    assert asyncio.run(run()) == [f"data-parallel rank {rank} of the server http://two:8000" for rank in (0, 1)]
