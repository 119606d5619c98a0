"""The token budget: the same whatever ran before, from what was measured, within its bounds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tomfisher.runtime.memory import Peak, activation_bytes_per_token, token_budget, tokens_that_fit

GPU = torch.device("cuda")
GIB = 1 << 30


class Llama8B(nn.Module):
    """Nothing but the sizes of Llama-3-8B, in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        self.devices = [GPU]
        self.config = SimpleNamespace(hidden_size=4096, num_hidden_layers=32, vocab_size=128_256)

    def parameters(self, recurse: bool = True):
        """One parameter per device, all of one size."""
        for device in self.devices:
            yield SimpleNamespace(device=device, numel=lambda: 1, element_size=lambda: 2)


@pytest.fixture
def memory(monkeypatch):
    """`memory(total, others, allocated, cached)`: what CUDA would say, in GiB."""

    def say(total, others=0.0, allocated=0.0, cached=0.0):
        free = (total - others - allocated - cached) * GIB
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(total * GIB)))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(allocated * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int((allocated + cached) * GIB))

    return say


def test_what_pytorch_keeps_without_using_it_counts_as_free(memory):
    memory(80, allocated=16)
    fresh = token_budget("auto", Llama8B(), GPU, {GPU: 28 * GIB})
    memory(80, allocated=16, cached=40)
    assert token_budget("auto", Llama8B(), GPU, {GPU: 28 * GIB}) == fresh
    memory(80, others=20, allocated=16)
    assert token_budget("auto", Llama8B(), GPU, {GPU: 28 * GIB}) < fresh


def test_an_8b_model_on_80_gb_gets_thousands_of_tokens(memory):
    memory(74.5, allocated=15)  # 80 GB, the weights in bfloat16
    assert activation_bytes_per_token(Llama8B()) == 2 * (32 * 4096 * 24 + 2 * 128_256)
    assert 3500 < token_budget("auto", Llama8B(), GPU, {GPU: 26 * GIB}) < 5000


def test_what_the_probe_measured_takes_the_place_of_the_estimate(memory):
    memory(80)
    estimate = token_budget("auto", Llama8B(), GPU, {GPU: 60 * GIB})
    measured = 2 * activation_bytes_per_token(Llama8B())
    assert token_budget("auto", Llama8B(), GPU, {GPU: 60 * GIB}, {GPU: measured}) == pytest.approx(
        estimate / 2, abs=256
    )


def test_a_model_on_several_gpus_fills_the_one_with_the_least_room(memory):
    model = Llama8B()
    memory(40, allocated=4)
    whole = token_budget("auto", model, GPU, {GPU: 7 * GIB})
    model.devices = [torch.device("cuda", i) for i in range(4)]
    reserved = {device: 7 * GIB for device in model.devices}
    assert token_budget("auto", model, GPU, reserved) == pytest.approx(min(16_384, 4 * whole), abs=1024)
    reserved[model.devices[2]] = 30 * GIB
    assert token_budget("auto", model, GPU, reserved) < whole


@pytest.mark.parametrize(
    ("room", "tokens"), [(0, 256), (-5, 256), (10**9, 768), (10**9 + 10**8, 1024), (10**12, 16_384)]
)
def test_a_budget_is_a_step_within_bounds(room, tokens):
    assert tokens_that_fit(room, 10**6) == tokens


def test_on_the_cpu_and_for_a_number_nothing_is_asked():
    assert token_budget("auto", Llama8B(), torch.device("cpu")) == 512
    assert token_budget(77, Llama8B(), GPU) == 77
    with pytest.raises(ValueError, match="must be 'auto' or a number"):
        token_budget("many", Llama8B(), GPU)


def test_a_peak_is_what_a_block_adds(monkeypatch):
    said = SimpleNamespace(now=100, peak=0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: setattr(said, "peak", said.now))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: said.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda d: said.peak)
    with Peak([GPU, torch.device("cpu")]) as peak:
        said.peak = 175
    assert peak.bytes == {GPU: 75}
