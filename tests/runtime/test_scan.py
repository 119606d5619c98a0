from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from tomfisher.runtime.modes import frozen, measuring
from tomfisher.runtime.scan import MODULE_OF, NAME, linear_scan, scan_of, selective_scan


def arguments(seed=0, length=13, dtype=torch.float64):
    """x, dt, A, B, C, and the optional D, z, delta_bias; batch 2, 6 channels, 4 numbers of state."""
    torch.manual_seed(seed)
    batch, channels, state = 2, 6, 4
    shapes = [(batch, channels, length), (batch, channels, length), (channels, state)]
    shapes += [(batch, state, length), (batch, state, length)]
    x, dt, A, B, C = (torch.randn(shape, dtype=dtype) for shape in shapes)
    options = {"D": (channels,), "z": (batch, channels, length), "delta_bias": (channels,)}
    return [x, dt, -A.abs(), B, C], {name: torch.randn(shape, dtype=dtype) for name, shape in options.items()}


def outcome(scan, positional, options, **more):
    """Output, last state, and the gradient of a weighted sum of the output by every argument."""
    inputs = [value.clone().requires_grad_() for value in (*positional, *options.values())]
    named = dict(zip(options, inputs[len(positional) :], strict=True))
    output, last = scan(*inputs[: len(positional)], **named, return_last_state=True, **more)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    return [output, last, *torch.autograd.grad((output * weights).sum(), inputs)]


def by_definition(x, dt, A, B, C):
    """The recurrence, one number at a time."""
    batch, channels, length = x.shape
    output = torch.zeros_like(x)
    for b in range(batch):
        for i in range(channels):
            state = [0.0] * A.shape[1]
            for t in range(length):
                for n in range(A.shape[1]):
                    decay = float(torch.exp(dt[b, i, t] * A[i, n]))
                    state[n] = decay * state[n] + float(dt[b, i, t] * B[b, n, t] * x[b, i, t])
                output[b, i, t] = sum(state[n] * float(C[b, n, t]) for n in range(A.shape[1]))
    return output


def test_output_is_the_recurrence():
    positional, _ = arguments(length=5)
    torch.testing.assert_close(
        selective_scan(*positional), by_definition(*positional), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("softplus", [False, True])
def test_gradients_are_those_of_finite_differences(softplus):
    positional, options = arguments(length=4)
    inputs = [value.requires_grad_() for value in (*positional, *options.values())]

    def scan(*values):
        named = dict(zip(options, values[5:], strict=True))
        return selective_scan(*values[:5], **named, delta_softplus=softplus)

    assert torch.autograd.gradcheck(scan, inputs)


@pytest.mark.parametrize("name", MODULE_OF.values())
def test_output_state_and_gradients_are_those_of_transformers(name):
    reference = getattr(importlib.import_module(name), NAME)
    positional, options = arguments(dtype=torch.float32)
    expected = outcome(reference, positional, options, delta_softplus=True)
    found = outcome(selective_scan, positional, options, delta_softplus=True)
    for ours, theirs in zip(found, expected, strict=True):
        # float32, sums of at most 13 * 12 terms
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("mode", [linear_scan, measuring, frozen])
def test_models_use_it_in_every_mode_and_their_own_scan_after_it(mode):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(1)
    config = MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    ids = torch.arange(18).view(2, 9)
    module = importlib.import_module(MODULE_OF["mamba"])
    before = getattr(module, NAME)
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(KeyboardInterrupt), mode(model):
            assert getattr(module, NAME) is selective_scan
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
            raise KeyboardInterrupt
    assert getattr(module, NAME) is before


def of_type(name):
    """A stand-in for a model of that type on the CPU."""
    return SimpleNamespace(config=SimpleNamespace(model_type=name), parameters=lambda: iter([torch.ones(1)]))


def runs(model):
    """Whether `selective_scan` stands in the modules of transformers within the block: Mamba, Jamba."""
    with linear_scan(model):
        return [
            getattr(importlib.import_module(name), NAME, None) is selective_scan
            for name in MODULE_OF.values()
        ]


def test_the_scan_is_chosen_by_model_type():
    assert scan_of(of_type("mamba")) == "linear" and runs(of_type("mamba")) == [True, False]
    assert scan_of(of_type("jamba")) == "linear" and runs(of_type("jamba")) == [False, True]
    assert scan_of(of_type("llama")) is None and runs(of_type("llama")) == [False, False]
    elsewhere = of_type("mamba")
    elsewhere.parameters = lambda: iter([torch.ones(1, device="meta")])
    assert scan_of(elsewhere) == "transformers" and runs(elsewhere) == [False, False]


def test_a_release_that_keeps_its_scan_elsewhere_is_warned_of(monkeypatch):
    monkeypatch.delattr(importlib.import_module(MODULE_OF["jamba"]), NAME)
    assert scan_of(of_type("jamba")) == "transformers"
    with pytest.warns(UserWarning, match=r"modeling_jamba.mamba_selective_scan, so jamba"):
        assert runs(of_type("jamba")) == [False, False]
    with warnings.catch_warnings(record=True) as said, linear_scan(of_type("mamba")):
        assert scan_of(of_type("mamba")) == "linear"
    assert not said


def test_small_numbers_count_as_zero_only_in_the_block():
    tiny = torch.tensor(1e-40)
    assert float(tiny * 1) > 0
    with linear_scan(of_type("mamba")):
        assert float(tiny * 1) == 0
    assert float(tiny * 1) > 0
