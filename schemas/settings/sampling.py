"""What generates the tokens: its settings, and the report of what it did."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import CardNumbers, Positive, Section, Url


class TransformersSamplerSettings(Section):
    """Sampling in this process with transformers."""

    kind: Literal["transformers"] = Field(default="transformers", description="This sampler.")


class VllmSamplerSettings(Section):
    """Sampling in a vLLM engine that this run starts beside the trainer."""

    kind: Literal["vllm"] = Field(default="vllm", description="This sampler.")
    dtype: Literal["model", "float32", "bfloat16", "float16"] = Field(
        default="model", description="Type of the engine's weights; 'model' is model.dtype."
    )
    max_model_len: int = Field(
        default=0, ge=0, description="Longest conversation in tokens, prompt included; 0 is what the model allows."
    )
    max_num_seqs: Positive = Field(default=256, description="Turns that are generated at one time.")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Share of the device's memory that the engine takes."
    )
    kv_cache_gb: float = Field(
        default=0.0, ge=0, description="GiB of cached keys and values; 0 is what the engine's share of memory leaves."
    )
    tensor_parallel_size: Positive = Field(default=1, description="GPUs that one copy of the model is spread over.")
    data_parallel_size: Positive = Field(default=1, description="Copies of the model that share the turns.")
    devices: CardNumbers = Field(
        default=(),
        description="Numbers of the cards that the engine's processes see, tensor_parallel_size times "
        "data_parallel_size; empty: all, of which they take the first.",
    )
    enforce_eager: bool = Field(default=False, description="No CUDA graphs and no compilation: slower, starts sooner.")
    sleep_while_training: bool = Field(
        default=False,
        description="Free the engine's GPU memory between sampling stages (vLLM's sleep mode; GPU only); no effect "
        "where devices has none of the trainer's cards.",
    )
    probe_tolerance: float = Field(
        default=1e-3,
        gt=0,
        description="After each change of weights sampler and trainer read a fixed text; sampling is refused when a "
        "token's log-probabilities differ by more than this, nats. bfloat16 needs some tenths.",
    )


class VllmServerSamplerSettings(Section):
    """Sampling by vLLM servers that run elsewhere (`vllm serve`)."""

    kind: Literal["vllm_server"] = Field(default="vllm_server", description="This sampler.")
    urls: tuple[Url, ...] = Field(
        min_length=1, description="Base URLs, such as http://gpu1:8000; turns are spread over them."
    )
    max_model_len: int = Field(
        default=0, ge=0, description="As for kind = 'vllm'; the servers' own --max-model-len must not be below it."
    )
    api_key_env: str = Field(default="", description="Environment variable that holds the servers' API key; '': none.")
    timeout_s: float = Field(
        default=600.0, gt=0, le=1_000_000, description="Longest wait for one turn; then its server is retired."
    )
    max_num_seqs: Positive = Field(default=256, description="Turns that are sent to one server at one time.")
    workspace_on_server: str = Field(
        default="", description="Path of the workspace's folder as the servers see it; '': the same as here."
    )
    probe_tolerance: float = Field(
        default=1e-3, gt=0, description="As for kind = 'vllm': largest difference of log-probabilities, nats."
    )


SamplingSettings = Annotated[
    TransformersSamplerSettings | VllmSamplerSettings | VllmServerSamplerSettings,
    Field(discriminator="kind", description="What generates the tokens."),
]
