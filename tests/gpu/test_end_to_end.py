"""A whole Fisher diagonal and a perturbation of a model on the GPU, through the kernels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

import tomfisher

pytest.importorskip("tomfisher.kernels.squared_gradient")

DEVICE = "cuda"
FAMILIES = ["llama-gqa", "mixtral"]  # linear layers, fused experts
# of the largest entry: how far float32 is from the definition, and one rounding of the operands to 16 bits
SLACK = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}

Tiny = Callable[..., tf.PretrainedConfig]


def model_of(tiny_config: Tiny, family: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    config = tiny_config(family)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.to(DEVICE, dtype).eval()


def enable_checkpointing(model: nn.Module) -> None:
    """The method has another name since transformers 5.20 or so; both ends of the range are supported."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def ragged(lengths: list[int]) -> list[tomfisher.Sample]:
    samples = []
    for length in lengths:
        ids = torch.randint(3, 53, (length,))
        samples.append(tomfisher.Sample(input_ids=ids, labels=ids.clone()))
    return samples


def definition(model: nn.Module, samples: list[tomfisher.Sample]) -> dict[str, Tensor]:
    """F of every parameter by float64 autograd, one sample at a time."""
    exact = copy.deepcopy(model).double()
    if hasattr(exact, "set_experts_implementation"):
        exact.set_experts_implementation("eager")  # the fused products have no float64
    F = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    for sample in samples:
        exact.zero_grad()
        ids, labels = sample.input_ids.to(DEVICE), sample.labels.to(DEVICE)
        logits = exact(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
        nn.functional.cross_entropy(logits, labels[1:]).backward()
        for name, p in exact.named_parameters():
            if p.grad is not None:
                F[name] += p.grad.square()
    return F


def bits(model: nn.Module) -> dict[str, Tensor]:
    integers = {2: torch.int16, 4: torch.int32}
    return {n: p.detach().clone().view(integers[p.element_size()]) for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", list(SLACK), ids=str)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fisher_diagonal_runs_through_the_kernels(
    tiny_config: Tiny, family: str, checkpointing: bool, dtype: torch.dtype
) -> None:
    model, samples = model_of(tiny_config, family, dtype), ragged([11, 3, 20, 7, 2])
    reference = tomfisher.fisher_diagonal(
        model, samples, tokens_per_batch=60, impl="reference", progress=False
    )
    expected = definition(model, samples) if dtype == torch.float32 else reference
    if checkpointing:
        enable_checkpointing(model)
    F = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=60, progress=False)
    assert F.implementations == {f"squared_gradient_@{DEVICE}": "triton"}
    assert set(F.methods.values()) == {"captured"} and F.num_samples == 5
    assert list(F) == list(reference)
    for name, mine in F.items():
        wanted = expected[name].to(mine.device)
        assert (mine - wanted).abs().max() <= SLACK[dtype] * wanted.max(), name
        assert mine.max() > 0, name


def test_the_fallback_runs_through_the_kernels_too(tiny_config: Tiny) -> None:
    model, samples = model_of(tiny_config, "llama-tied", torch.float32), ragged([5, 4])
    F = tomfisher.fisher_diagonal(model, samples, params="*embed*", progress=False)
    assert F.implementations == {f"square_accumulate_@{DEVICE}": "triton"}
    ((name, mine),) = F.items()
    wanted = definition(model, samples)[name].to(mine.device)
    assert (mine - wanted).abs().max() <= SLACK[torch.float32] * wanted.max()


@pytest.mark.parametrize("dtype", list(SLACK), ids=str)
def test_the_same_run_twice_gives_the_same_bits(tiny_config: Tiny, dtype: torch.dtype) -> None:
    model, samples = model_of(tiny_config, "llama-gqa", dtype), ragged([11, 3, 20, 7, 2])
    first, second = (
        tomfisher.fisher_diagonal(model, samples, tokens_per_batch=60, progress=False) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", list(SLACK), ids=str)
@pytest.mark.parametrize("fill", ["mean", "zero", "noise", "scale:1.5"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbation_runs_through_the_kernels_and_is_undone_to_the_bit(
    tiny_config: Tiny, family: str, fill: str, dtype: torch.dtype
) -> None:
    model = model_of(tiny_config, family, dtype)
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    mask = tomfisher.top_fraction({name: p.detach().float().abs() for name, p in weights.items()}, 0.01)
    before, written = bits(model), {}
    for impl, ran in (("auto", "triton"), ("reference", "reference")):
        with tomfisher.perturb(model, mask, fill=fill, impl=impl) as perturbation:
            written[ran] = {name: p.detach().clone() for name, p in weights.items()}
            assert set(perturbation.implementations.values()) == {ran}
            assert all(key.endswith(f"@{DEVICE}") for key in perturbation.implementations)
        assert all(torch.equal(now, before[name]) for name, now in bits(model).items())
    for name, weight in weights.items():
        mine, wanted = written["triton"][name], written["reference"][name]
        # a mean may be a quarter of a unit off before it is rounded, hence one unit after
        assert ((mine - wanted).abs() <= torch.finfo(dtype).eps * wanted.abs()).all(), name
        changed = (mine != weight).sum().item()
        assert 0 < changed <= math.floor(0.01 * weight.numel()), name


def test_a_pass_needs_F_and_the_activations_of_a_batch_and_no_gradient_per_sample() -> None:
    config = tf.LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).to(DEVICE, torch.bfloat16).eval()
    ids = [torch.randint(3, 512, (64,)) for _ in range(16)]
    samples = [tomfisher.Sample(input_ids=row, labels=row.clone()) for row in ids]
    tomfisher.fisher_diagonal(model, samples[:2], progress=False)  # compiles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    extra = torch.cuda.max_memory_allocated() - before
    sums = sum(4 * f.numel() for f in F.values())
    budget = F.metadata["tokens_per_batch"]
    tokens = min(budget["taken"], 16 * 64)
    (held,) = budget["bytes_per_token"].values()
    assert held > 0 and budget["least"] == budget["taken"]
    assert extra <= sums + 1.5 * held * tokens + 4 * max(f.numel() for f in F.values())
    assert extra < sums * 16 / 2  # a gradient per sample would take 16 times as much as F
