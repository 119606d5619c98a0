"""Fused experts: captured in batches, equal to the definition, and the model's own implementation afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

import tomfisher
from tomfisher.fisher import experts
from tomfisher.fisher.experts import Routing
from tomfisher.fisher.probe import PROBE_ROWS, choose_methods
from tomfisher.fisher.selection import select_parameters
from tomfisher.fisher.stage import WholeModel

# gpt-oss: transposed weights, biases and a gate of its own; jamba: experts in every second layer
MIXTURES = ["mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "jamba"]


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_experts_are_captured_in_batches_and_equal_the_definition(
    tiny: SimpleNamespace, mixture: str, checkpointing: bool
) -> None:
    model = tiny.model(mixture)
    samples = tiny.samples(9)
    expected = tiny.definition(model, samples)
    if checkpointing:
        tiny.enable_checkpointing(model)
    sizes: list[int] = []
    model.model.layers[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    F = tomfisher.fisher_diagonal(model, samples, params="*.experts.*", tokens_per_batch=1000, progress=False)
    assert set(F.methods.values()) == {"captured"}
    assert max(sizes) == 9
    tiny.assert_exact(F, expected)


@pytest.mark.parametrize("broken", [False, True])
def test_the_models_own_implementation_is_back_afterwards(tiny: SimpleNamespace, broken: bool) -> None:
    model = tiny.model("mixtral")
    before, known = model.config._experts_implementation, list(ALL_EXPERTS_FUNCTIONS)
    if broken:
        with torch.no_grad():
            model.lm_head.weight[0, 0] = torch.nan
        with pytest.raises(FloatingPointError):
            tomfisher.fisher_diagonal(model, tiny.samples(2), progress=False)
    else:
        tomfisher.fisher_diagonal(model, tiny.samples(2), progress=False)
    assert model.config._experts_implementation == before
    assert list(ALL_EXPERTS_FUNCTIONS) == known


def test_the_probe_catches_experts_whose_weights_act_elsewhere_too(tiny: SimpleNamespace) -> None:
    model = tiny.model("mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.forward = lambda hidden, chosen, weights: type(experts).forward(
        experts, hidden + experts.down_proj[0].sum(1), chosen, weights
    )
    F = tomfisher.fisher_diagonal(model, tiny.samples(4), params="*.experts.*", progress=False)
    name = "model.layers.0.mlp.experts.down_proj"
    assert F.methods[name].startswith("fallback: capture differs")


def test_the_probe_keeps_a_few_rows_of_each_expert(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    from tomfisher.fisher import probe

    original = probe._compared
    model = tiny.model("mixtral")
    selection = select_parameters(model, "*.experts.*")

    def watch(captured, expected):  # type: ignore[no-untyped-def]
        shapes.update({tuple(selection[n].shape): tuple(a.F.shape) for n, a in captured.items()})
        return original(captured, expected)

    monkeypatch.setattr(probe, "_compared", watch)
    choose_methods(WholeModel(model), selection, tiny.samples(2))
    assert shapes == {(4, 96, 32): (4, PROBE_ROWS // 4, 32), (4, 32, 48): (4, PROBE_ROWS // 4, 48)}


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 5),
    E=st.integers(1, 6),
    K=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_routing_sorts_every_choice_into_its_segment(
    batch: int, length: int, E: int, K: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, E, (batch * length, K), generator=generator)
    routing = Routing.of(chosen, E, batch)
    assert sorted(routing.order.tolist()) == list(range(chosen.numel()))
    assert routing.per_expert == torch.bincount(chosen.flatten(), minlength=E).tolist()
    assert routing.offsets[0] == 0 and routing.offsets[-1] == chosen.numel()
    assert routing.targets.tolist() == [e for e in range(E) for _ in range(batch)]
    for segment, expert in enumerate(routing.targets.tolist()):
        rows = slice(routing.offsets[segment], routing.offsets[segment + 1])
        choices = routing.order[rows]
        assert (chosen.flatten()[choices] == expert).all()
        samples = choices // K // length
        assert (samples == segment % batch).all() and torch.equal(routing.samples[rows], samples)
        assert choices.tolist() == sorted(choices.tolist())


def test_routing_waits_for_the_rows_of_each_expert_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited, called = [], []
    plain = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: waited.append(t.numel()) or plain(t))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Operations():
        Routing.of(torch.randint(0, 5, (4 * 7, 2)), 5, 4)
    waits = ("_local_scalar_dense", "nonzero", "bincount", "unique", "repeat_interleave.Tensor")
    assert waited == [5] and not [name for name in called if any(wait in name for wait in waits)]


def test_experts_that_see_other_tokens_than_the_batch_fall_back(tiny: SimpleNamespace) -> None:
    model = tiny.model("mixtral")
    experts = model.model.layers[0].mlp.experts

    class OneMore(type(experts)):  # type: ignore[misc]
        def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
            return super().forward(*(torch.cat([a, a[:1]]) for a in arguments))[:-1]

    experts.__class__ = OneMore
    samples = tiny.samples(4)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="*.experts.*", progress=False)
    assert "tokens in a batch of" in F.methods["model.layers.0.mlp.experts.down_proj"]
    assert F.methods["model.layers.1.mlp.experts.down_proj"] == "captured"
    tiny.assert_exact(F, expected)


def test_choices_of_experts_on_other_ranks_have_no_rows(tiny: SimpleNamespace) -> None:
    module = tiny.model("mixtral").model.layers[0].mlp.experts
    hidden, weights = torch.randn(10, 32), torch.rand(10, 2)
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(10)])
    elsewhere = chosen == 2
    elsewhere[0] = True
    expected = module(hidden, chosen, weights.masked_fill(elsewhere, 0))
    marked = chosen.masked_fill(elsewhere, module.num_experts)
    rows = []

    def watch(name: str, output: torch.Tensor, x: torch.Tensor, routing: experts.Routing) -> torch.Tensor:
        rows.append((len(x), sum(routing.per_expert), int(routing.offsets[-1]), len(routing.samples)))
        return output

    found = experts.forward(module, hidden, marked, weights.masked_fill(elsewhere, 0), 2, watch)
    torch.testing.assert_close(found, expected)
    assert rows == [(int((~elsewhere).sum()),) * 4] * 2
