"""A Fisher pass on paper: its parts are those of the work, and a measurement stands beside them."""

from __future__ import annotations

import pytest
import torch

from tomfisher.benchmarks import models
from tomfisher.cli.main import main
from tomfisher.fisher import gpu_pass
from tomfisher.fisher.sizes import sizes_of
from tomfisher.models.load import load_structure
from tomfisher.runtime import gpus

WEIGHTS, HEAD = 6_979_321_856, 525_336_576  # of Llama-3-8B


@pytest.fixture(scope="module")
def llama():
    return sizes_of(models.without_weights("llama3-8b"))


def test_the_sizes_come_from_shapes_without_values(llama):
    assert (llama.weights, llama.head, len(llama.layers)) == (WEIGHTS, HEAD, 32)
    assert llama.active == WEIGHTS and llama.model_bytes == 2 * 8_030_261_248


def test_the_parts_are_the_work_of_a_pass(llama):
    found = gpu_pass.on_paper(gpus.named("h100"), llama, samples=100, length=128)
    parts = {part.name: part for part in found.parts}
    tokens = 12_800
    assert parts[gpu_pass.GRADIENTS].flop == 4 * (WEIGHTS + HEAD) * tokens
    assert parts["products of gradients, squared"].flop == 2 * WEIGHTS * tokens
    assert parts["F, read and written"].bytes == 8 * WEIGHTS * found.batches
    assert found.flop == 2 * tokens * (3 * WEIGHTS + 2 * HEAD)
    assert found.batches == -(-100 // (found.tokens_per_batch // 128))
    assert found.seconds == pytest.approx(sum(part.seconds for part in found.parts))
    assert found.seconds > found.flop / gpus.named("h100").bf16  # slower than the data sheet


def test_more_memory_is_fewer_batches_and_a_given_budget_is_taken(llama):
    small, large = (gpu_pass.on_paper(gpus.named(name), llama, 100, 128) for name in ("h100", "h200"))
    assert large.batches < small.batches and large.seconds < small.seconds
    assert gpu_pass.on_paper(gpus.named("h100"), llama, 100, 128, 1280).batches == 10


def test_the_kernel_for_hopper_is_reckoned_where_it_runs(llama):
    h100, a100 = (gpu_pass.on_paper(gpus.named(name), llama, 100, 128) for name in ("h100", "a100"))
    ours = next(part for part in h100.parts if part.name == gpu_pass.SQUARES)
    rate = ours.flop / (h100.hopper_seconds - h100.seconds + ours.seconds)
    assert rate == pytest.approx(gpu_pass.HOPPER_TILE * gpus.named("h100").bf16)
    assert a100.hopper_seconds is None
    assert "with triton-hopper" in gpu_pass.format_pass(gpus.named("h100"), h100)
    assert "with triton-hopper" not in gpu_pass.format_pass(gpus.named("a100"), a100).split("Assumed")[0]


def test_small_models_are_bound_by_their_launches():
    sizes = sizes_of(models.without_weights("tiny"))
    found = gpu_pass.on_paper(gpus.named("h100"), sizes, 10, 16)
    assert found.seconds == found.launches * gpu_pass.LAUNCH_S


def test_of_experts_a_token_meets_a_few(tiny_config):
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        config = tiny_config("mixtral")
        sizes = sizes_of(AutoModelForCausalLM.from_config(config))
    share = config.num_experts_per_tok / config.num_local_experts
    assert share < 1 and sizes.weights * share < sizes.active < sizes.weights


def test_measured_seconds_stand_beside_those_on_paper(llama):
    gpu = gpus.named("a100")
    found = gpu_pass.on_paper(gpu, llama, 100, 128)
    text = gpu_pass.format_pass(gpu, found, {gpu_pass.WHOLE: 4.5, gpu_pass.LOOP: 12.25})
    assert [line.split()[-2] for line in text.splitlines() if "measured" in line and "pass " in line] == [
        "4.500"
    ]
    assert "measured  12.250 s" in text and "Assumed, not measured" in text


def test_plan_takes_a_config_without_weights(tmp_path, capsys):
    load_structure("testbed-llama").config.save_pretrained(tmp_path)
    assert main(["plan", "--gpu", "h200", "--model", str(tmp_path), "--n_task", "10"]) == 0
    out = capsys.readouterr().out
    assert "655,360 weights of decoder-linear, 10 samples of 128 tokens" in out and "H200" in out
    assert main(["plan", "--gpu", "4090", "--model", "llama3-70b"]) == 0
    assert "it does not fit" in capsys.readouterr().out


def test_a_structure_has_no_values_and_what_is_no_language_model_is_refused(tmp_path):
    model = load_structure("testbed-llama")
    assert all(p.is_meta for p in model.parameters()) and not model.training
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="no causal language model"):
        load_structure(str(tmp_path))
