"""The table of architectures: its figures add up to the published parameter counts."""

from __future__ import annotations

import pytest

from wattline.errors import ParamError, UnknownNameError, UsageError
from wattline.suites.models import Layer, get_model, known_models

# Published sizes in billions: model cards and papers named in models.toml. Where head and embedding share one matrix
# (tied), the table counts it twice, so it is taken off here.
PUBLISHED = {
    "gpt-3-175b": 175.0,
    "llama-2-7b": 6.74,
    "llama-2-13b": 13.0,
    "llama-3-8b": 8.03,
    "llama-3-70b": 70.6,
    "llama-3.1-405b": 406.0,
    "mistral-7b": 7.24,
    "mixtral-8x7b": 46.7,
    "mixtral-8x22b": 141.0,
    "deepseek-v3": 671.0,
    "qwen2.5-7b": 7.61,
    "qwen2.5-72b": 72.7,
    "qwen3-8b": 8.2,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235.0,
}
PUBLISHED_TIED = {"gpt-2": 0.124, "llama-3.2-1b": 1.24, "qwen2.5-0.5b": 0.494, "gemma-2-9b": 9.24}


@pytest.mark.parametrize("name", sorted(known_models()))
def test_parameter_counts_match_the_published_ones(name: str) -> None:
    model = get_model(name)
    count = model.parameters()
    if name in PUBLISHED_TIED:
        count -= model.vocab * model.hidden
    assert count / 1e9 == pytest.approx((PUBLISHED | PUBLISHED_TIED)[name], rel=0.01)
    assert model.source


def test_llama_3_8b_by_hand() -> None:
    assert get_model("llama-3-8b").gemm_layers() == [
        Layer("qkv", 4096 + 2 * 1024, 4096, 32),
        Layer("attention_out", 4096, 4096, 32),
        Layer("gate_up", 2 * 14336, 4096, 32),
        Layer("down", 4096, 14336, 32),
        Layer("lm_head", 128256, 4096),
    ]


def test_tensor_parallel_slices_by_hand() -> None:
    layers = {layer.name: (layer.n, layer.k) for layer in get_model("llama-3-70b").gemm_layers(16)}
    assert layers["qkv"] == ((4 + 2 * 1) * 128, 8192)  # 8 key-value heads on 16 ranks: replicated
    assert layers["attention_out"] == (8192, 4 * 128)
    assert layers["gate_up"] == (2 * 28672 // 16, 8192)
    assert layers["down"] == (8192, 28672 // 16)
    assert layers["lm_head"] == (8016, 8192)
    assert get_model("gpt-2").gemm_layers(2)[-1].n == 25129  # 50257 / 2, padded


def test_latent_attention_and_experts_by_hand() -> None:
    layers = {layer.name: (layer.n, layer.k, layer.count) for layer in get_model("deepseek-v3").gemm_layers(8)}
    assert layers["q_up"] == (16 * 192, 1536, 61)
    assert layers["kv_down"] == (576, 7168, 61)
    assert layers["kv_up"] == (16 * 256, 512, 61)
    assert layers["expert_gate_up"] == (512, 7168, 58 * 9)
    assert layers["router"] == (256, 7168, 58)
    assert layers["down"] == (7168, 18432 // 8, 3)


@pytest.mark.parametrize("name", sorted(known_models()))
def test_slices_of_all_ranks_hold_the_whole_matrix(name: str) -> None:
    model = get_model(name)
    whole = {layer.name: layer.n * layer.k for layer in model.gemm_layers(1)}
    for tp in (2, 4, 8):
        if not model.divides(tp):
            continue
        for layer in model.gemm_layers(tp):
            assert layer.n * layer.k * tp >= whole[layer.name]
            if layer.name in ("attention_out", "gate_up", "up", "down", "expert_down"):
                assert layer.n * layer.k * tp == whole[layer.name]


def test_wrong_requests() -> None:
    with pytest.raises(UnknownNameError, match="llama-3-8b"):
        get_model("llama3-8b")
    with pytest.raises(UsageError, match="14 heads"):
        get_model("qwen2.5-0.5b").gemm_layers(4)
    for tp in (0, -1, True):
        with pytest.raises(ParamError):
            get_model("llama-3-8b").gemm_layers(tp)
