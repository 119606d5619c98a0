"""Memory, bytes and operations on paper: against formulas written out here, and against a process's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from tomfisher.fisher.footprint import LAYER, OUTSIDE, WHOLE, footprint, predicted_peak
from tomfisher.fisher.sizes import Sizes, sizes_of
from tomfisher.fisher.way import Way, Work
from tomfisher.runtime.gpus import named
from tomfisher.runtime.machine import Machine

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128,
}  # fmt: skip
GB = 1e9
# enough for any way, so that only what the ways hold differs
HERE = Machine(memory=1 << 62)
NODE = Machine(memory=80 * 10**9, devices=8, gpu=named("h100"))
EXPERTS_8, SHARDED, AHEAD = Way(stream=True, samples=8, experts=8), Way(samples=8, shards=8), Way(stream=True)


def sizes(config: dict, dtype: torch.dtype = torch.bfloat16) -> Sizes:
    config = dict(config)
    kind = config.pop("model_type")
    with torch.device("meta"):
        return sizes_of(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)), dtype=dtype)


@pytest.fixture(scope="module")
def models() -> dict[str, Sizes]:
    return {"8B": sizes(LLAMA_8B), "70B": sizes(LLAMA_70B), "V3": sizes(DEEPSEEK_V3)}


def held(model: Sizes, way: Way) -> float:
    return (
        footprint(model, way, NODE, Work(tokens_per_batch=128)).stages[LAYER if way.stream else WHOLE].held
        / GB
    )


def llama_layer(config: dict) -> int:
    """Weights of the seven matrices of a layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    return 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner


@pytest.mark.parametrize(("name", "config"), [("8B", LLAMA_8B), ("70B", LLAMA_70B)])
def test_what_ways_hold_is_the_formula(models, name, config):
    model, matrices, layers = models[name], llama_layer(config), config["num_hidden_layers"]
    W, F = 2 * (matrices + 2 * config["hidden_size"]), 4 * matrices  # a layer with its two norms
    outside = 2 * (2 * config["vocab_size"] + 1) * config["hidden_size"]
    all_W, all_F = layers * W + outside, layers * F
    assert model.widest.parameters * 2 == W and model.widest.selected * 4 == F
    assert (model.model_bytes, model.fisher_bytes) == (all_W, all_F)
    assert held(model, Way()) * GB == all_W + all_F
    assert held(model, Way(tensor=8)) * GB == pytest.approx((all_W + all_F) / 8)
    sharded = (all_W + all_F) / 8 + 2 * W + F
    assert held(model, Way(samples=8, shards=8)) * GB == pytest.approx(sharded)
    assert held(model, Way(stream=True)) * GB == 2 * W + F
    assert held(model, Way(stream=True, prefetch=False)) * GB == W + F


def test_of_experts_a_rank_holds_its_share(models):
    model, experts = models["V3"], 3 * 256 * 7168 * 2048
    layer = model.widest
    assert (layer.experts, model.expert_layers, model.chosen) == (experts, 58, 8)
    rest_W, rest_F = 2 * (layer.parameters - experts), 4 * (layer.selected - experts)
    assert held(model, EXPERTS_8) * GB == pytest.approx(2 * rest_W + rest_F + (2 * 2 + 4) * experts / 8)


@pytest.mark.parametrize(
    ("name", "layer", "whole", "by_way"),
    [
        ("8B", (0.44, 0.87), (16, 28), {Way(): 44, Way(tensor=8): 5.5, SHARDED: 7.3, AHEAD: 1.8}),
        ("70B", (1.7, 3.4), (141, 274), {Way(): 415, Way(tensor=8): 52, SHARDED: 59, AHEAD: 6.8}),
        ("V3", (23, 46), (1342, 2600), {Way(): 3950, Way(tensor=8): 490, Way(stream=True, prefetch=False): 69}),
    ],
)  # fmt: skip
def test_figures_worked_out_by_hand(models, name, layer, whole, by_way):
    """To the two digits that were written down; those of DeepSeek-V3 took all layers for 45 GB of F."""
    model = models[name]
    assert [model.widest.parameters * 2 / GB, model.widest.selected * 4 / GB] == pytest.approx(
        layer, rel=0.01
    )
    assert [model.model_bytes / GB, model.fisher_bytes / GB] == pytest.approx(whole, rel=0.03)
    for way, expected in by_way.items():
        assert held(model, way) == pytest.approx(expected, rel=0.035), way


def test_a_streamed_run_reads_everything_twice_and_holds_embeddings_and_head_apart_from_layers(models):
    model = models["8B"]
    found = footprint(model, Way(stream=True), Machine(memory=16 * 10**9), Work())
    outside = 2 * (2 * 128256 + 1) * 4096
    assert found.stages[OUTSIDE].held == outside + 2 * model.widest.parameters
    assert found.traffic.read == found.traffic.node_read == 2 * model.model_bytes
    assert found.traffic.read / model.model_bytes <= 2.05
    assert found.traffic.written == model.fisher_bytes == found.disk


def test_a_second_diagonal_shares_the_readings(models):
    way, machine = Way(stream=True, boundary="disk"), Machine(memory=16 * 10**9)
    one, two = (footprint(models["8B"], way, machine, Work(fishers=n)) for n in (1, 2))
    assert two.traffic.read == one.traffic.read
    assert two.traffic.written == 2 * one.traffic.written and two.traffic.flop == 2 * one.traffic.flop
    assert two.traffic.spilled == 2 * one.traffic.spilled
    assert one.device.total == two.device.total  # one F of one layer at a time


def test_host_memory_of_eight_ranks_stays_below_the_bound(models):
    found = footprint(models["70B"], Way(stream=True, samples=8), NODE, Work())
    boundaries = 81 * 13 * 128 * 8192 * 2  # the busiest rank has 13 of 100 samples
    assert found.host.boundaries == boundaries
    assert found.host.total - boundaries <= 9 * GB
    on_cpu = footprint(models["70B"], Way(stream=True, samples=8), Machine(memory=10**12, devices=8), Work())
    assert on_cpu.host.total == 0 and on_cpu.device.total - boundaries <= 9 * GB


def test_what_ranks_send_follows_from_the_sharding(models):
    model, F, work = models["8B"], models["8B"].fisher_bytes, Work(samples=64, length=128)
    layers = 2 * sum(layer.parameters for layer in model.layers)
    two_nodes = Machine(memory=80 * 10**9, devices=8, nodes=2, gpu=named("h100"))

    def sent(way: Way, machine: Machine) -> tuple[float, float]:
        traffic = footprint(model, way, machine, work).traffic
        return traffic.link, traffic.network

    assert sent(Way(stream=True), NODE) == (0, 0)
    assert sent(Way(stream=True, samples=8), NODE) == (F * 7 / 8, 0)
    assert sent(Way(stream=True, samples=16), two_nodes) == (F * 7 / 16, F / 2)
    assert sent(Way(samples=16, shards=8), two_nodes) == ((2 * layers + F) * 7 / 8, F / 8 / 2)
    tokens = 64 * 128
    assert sent(Way(tensor=8), NODE) == (4 * 32 * 2 * 7 / 8 * tokens * 4096 * 2, 0)


def test_every_rank_takes_the_samples_of_the_busiest(models):
    alone, split = (
        footprint(models["8B"], Way(samples=n), NODE, Work(samples=10)).traffic.flop for n in (1, 4)
    )
    assert split == pytest.approx(alone * 3 / 10)


MEASURE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
import tomfisher
from tomfisher.benchmarks.memory import peak_extra_bytes

def work(config, samples, length):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config), dtype=torch.float32).eval()
    ids = torch.randint(config["vocab_size"], (samples, length))
    return model, [tomfisher.Sample(input_ids=row, labels=row) for row in ids]

small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
tomfisher.fisher_diagonal(*work(small, 2, 8), progress=False)  # what libraries take when they are first used
model, samples = work(*json.loads(sys.argv[1]))
print(peak_extra_bytes(lambda: tomfisher.fisher_diagonal(model, samples, progress=False)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_predicted_peak_of_a_resident_run_is_the_measured_one():
    """Beside the weights within 10 %: F is exact, activations and workspace are estimates.

    An allocator that gives everything back at once makes the peak the same in every run.
    """
    config = {
        "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    arguments = json.dumps([config, 8, 64])
    allocator = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, arguments], capture_output=True, text=True, check=False, env=allocator
    )
    assert done.returncode == 0, done.stderr
    resident = footprint(
        sizes({"model_type": "llama", **config}, torch.float32), Way(), HERE, Work(8, 64)
    ).device
    assert predicted_peak(LlamaConfig(**config), 8, 64) == int(resident.total)
    in_use = resident.total - resident.weights - resident.fragments
    assert in_use == pytest.approx(int(done.stdout), rel=0.1)
