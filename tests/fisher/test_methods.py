"""The probe: what is captured, what falls back and why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tomfisher
from tomfisher.fisher import capture, select_parameters
from tomfisher.fisher.probe import choose_methods
from tomfisher.fisher.stage import WholeModel

FALLS_BACK = {  # decoder weights that no closed form can reach, by family
    "mamba": {"mixer.dt_proj.weight"},
    "jamba": {"mamba.dt_proj.weight"},
}


def test_decoder_weights_are_captured_except_where_no_module_is_called(
    tiny: SimpleNamespace, family: str
) -> None:
    model = tiny.model(family)
    methods = choose_methods(WholeModel(model), select_parameters(model, "decoder-linear"), tiny.samples(3))
    assert {".".join(name.split(".")[3:]) for name in methods.fallback} == FALLS_BACK.get(family, set())
    assert set(methods.describe()) == set(methods.captured) | set(methods.fallback)


def test_tied_weights_fall_back_and_name_their_twin(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-tied")
    methods = choose_methods(WholeModel(model), select_parameters(model, "all"), tiny.samples(2))
    assert list(methods.fallback) == ["model.embed_tokens.weight"]
    assert "lm_head.weight" in methods.fallback["model.embed_tokens.weight"]


class _Lying(nn.Linear):
    """Multiplies by twice its weight: a closed form for nn.Linear is wrong by a factor of four."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, 2 * self.weight)


class _Twice(nn.Module):
    """Calls one module two times in a pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.inner(0.5 * x)


def test_a_module_that_is_not_what_it_seems_falls_back_and_stays_exact(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-gqa")
    mlp = model.model.layers[0].mlp
    odd = _Lying(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)
    odd.weight = nn.Parameter(mlp.up_proj.weight.detach().clone())
    mlp.up_proj = odd
    mlp.gate_proj = _Twice(mlp.gate_proj)
    samples = tiny.samples(4)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert "differs from autograd" in F.methods["model.layers.0.mlp.up_proj.weight"]
    assert "called 2 times" in F.methods["model.layers.0.mlp.gate_proj.inner.weight"]
    assert F.methods["model.layers.1.mlp.up_proj.weight"] == "captured"
    assert set(F.implementations) == {"squared_gradient_@cpu", "square_accumulate_@cpu"}
    tiny.assert_exact(F, expected)


def test_the_probe_sees_a_broken_closed_form(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares per token instead of per sample: the mistake that flattened inputs invite."""

    def per_token(module, accumulators, grad_output, inputs, layout):  # type: ignore[no-untyped-def]
        target = accumulators["weight"]
        y, x = grad_output.flatten(0, -2), inputs[0].flatten(0, -2)
        y = y if target.rows is None else y[:, target.rows]
        target.F.add_(y.square().T @ x.square())

    original = capture.contribution_for
    monkeypatch.setattr(
        capture, "contribution_for", lambda m: per_token if isinstance(m, nn.Linear) else original(m)
    )
    model = tiny.model("llama-gqa")
    samples = tiny.samples(3)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert all("differs from autograd" in method for method in F.methods.values())
    tiny.assert_exact(F, tiny.definition(model, samples))


def test_inputs_flattened_to_tokens_keep_their_samples(tiny: SimpleNamespace) -> None:
    model = tiny.model("opt")  # fc1 and fc2 see [B*T, D]
    samples = tiny.samples(6)
    F = tomfisher.fisher_diagonal(
        model, samples, params="*.fc?.weight", tokens_per_batch=1000, progress=False
    )
    assert set(F.methods.values()) == {"captured"}
    tiny.assert_exact(F, tiny.definition(model, samples))
