"""Linear layers by oneDNN: the same numbers, gradients for the input, and the model as it was afterwards."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tomfisher import Sample, evaluate, fisher_diagonal, tasks
from tomfisher.models import load_model
from tomfisher.runtime import onednn

pytestmark = pytest.mark.skipif(not onednn.has_onednn(), reason="PyTorch was built without oneDNN")
SIZE = 320  # SIZE * SIZE entries are enough


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch):
    monkeypatch.setattr(onednn, "outruns_mkl", lambda: True)


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the products that oneDNN was asked for."""
    seen, real = [], onednn.product

    def product(x, weight, bias=None):
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return real(x, weight, bias)

    monkeypatch.setattr(onednn, "product", product)
    return seen


def layers():
    conv = Conv1D(SIZE, SIZE)
    nn.init.normal_(conv.bias)
    linear = nn.Linear(SIZE, SIZE)
    return nn.ModuleList([linear, nn.Linear(SIZE, SIZE, bias=False), conv]).requires_grad_(False)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (2, 5), (2, 1, 3)])
@pytest.mark.parametrize("d_in, d_out", [(1, 1), (33, 7), (576, 1536), (1536, 65)])
@pytest.mark.parametrize("strided", [False, True])
def test_product_is_as_good_as_pytorchs(shape, d_in, d_out, strided):
    generator = torch.Generator().manual_seed(d_in)
    x = torch.randn(*shape, d_in, generator=generator)
    weight = torch.randn(d_out, d_in, generator=generator)
    bias = torch.randn(d_out, generator=generator)
    if strided:
        x, weight = x.expand(2, *x.shape), weight.t().contiguous().t()
    exact = nn.functional.linear(x.double(), weight.double(), bias.double())
    scale = x.abs().double() @ weight.abs().double().t() + bias.abs()
    eager = ((nn.functional.linear(x, weight, bias) - exact).abs() / scale).max()
    ours = ((onednn.product(x, weight, bias) - exact).abs() / scale).max()
    # one chain of additions per entry where MKL has several: 2 to 4 times its error (measured), never one that shows
    assert ours <= 5 * eager + 2 * torch.finfo(torch.float32).eps


def test_values_and_gradients_are_the_modules_own(calls):
    torch.manual_seed(0)
    for module in layers():
        x = torch.randn(2, 3, SIZE, requires_grad=True)
        (expected,) = torch.autograd.grad(module(x).sin().sum(), x)
        value = module(x).detach()
        with onednn.by_onednn(module):
            y = module(x)
            (gradient,) = torch.autograd.grad(y.sin().sum(), x)
            with torch.no_grad():
                assert torch.equal(module(x), y)
            assert module(x.detach()).requires_grad is False
        torch.testing.assert_close(y.detach(), value, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-4)
    assert len(calls) == 3 * 4


def test_forwards_are_put_back_on_an_error(calls):
    model = layers()
    with pytest.raises(KeyError), onednn.by_onednn(model):
        assert all("forward" in module.__dict__ for module in model)
        raise KeyError
    assert not any("forward" in module.__dict__ for module in model)
    model[0](torch.randn(2, SIZE))
    assert not calls


def unlike(change):
    model = layers()
    change(model)
    return model


@pytest.mark.parametrize(
    "model",
    [
        unlike(lambda model: model.double()),
        unlike(lambda model: model.bfloat16()),
        unlike(lambda model: model.requires_grad_(True)),
        nn.ModuleList([nn.Linear(SIZE, 8), Conv1D(8, SIZE)]).requires_grad_(False),
    ],
    ids=["float64", "bfloat16", "trained", "small"],
)
def test_what_it_does_not_concern_goes_its_own_way(model, calls):
    for module in model:
        weight = module.weight
        x = torch.randn(3, SIZE, dtype=weight.dtype, requires_grad=True)
        expected = module(x)
        with onednn.by_onednn(module):
            y = module(x)
            y.sum().backward()
        assert torch.equal(y, expected)
        assert (weight.grad is not None) == weight.requires_grad
    assert not calls


@pytest.mark.parametrize("way", ["autocast", "empty", "switched off"])
def test_a_call_that_it_does_not_suit_goes_its_own_way(way, calls):
    module = layers()[0]
    x = torch.randn(0 if way == "empty" else 3, SIZE)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"),
        torch.backends.mkldnn.flags(enabled=way != "switched off"),
    ):
        expected = module(x)
        with onednn.by_onednn(module):
            assert torch.equal(module(input=x), expected)
    assert not calls


def test_a_forward_of_somebody_elses_stays(calls):
    module = layers()[0]
    module.forward = lambda x: x + 1
    with onednn.by_onednn(module):
        assert torch.equal(module(torch.zeros(2)), torch.ones(2))
    assert torch.equal(module(torch.zeros(2)), torch.ones(2)) and not calls


@pytest.mark.parametrize(
    ("maker", "capability", "machine", "expected"),
    [
        ("AuthenticAMD", "AVX512", "x86_64", True),
        ("AuthenticAMD", "AVX512", "AMD64", True),
        ("AuthenticAMD", "AVX2", "x86_64", False),
        ("GenuineIntel", "AVX512", "x86_64", False),
        (None, "AVX512", "x86_64", False),
        (None, "DEFAULT", "aarch64", False),
    ],
)
def test_only_where_it_was_measured_to_be_faster(monkeypatch, maker, capability, machine, expected):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    monkeypatch.setattr(onednn, "_processor_maker", lambda: maker)
    assert onednn.outruns_mkl.__wrapped__() == expected


def test_the_maker_of_this_processor_is_read():
    assert onednn._processor_maker() in ("GenuineIntel", "AuthenticAMD", "HygonGenuine", None)


def test_a_copy_made_meanwhile_computes_with_its_own_weights(calls):
    module, x = layers()[0], torch.randn(3, SIZE)
    with onednn.by_onednn(module):
        other = copy.deepcopy(module)
        other.weight.zero_()
        other.bias.zero_()
        assert torch.equal(other(x), torch.zeros(3, SIZE))
        assert not torch.equal(module(x), other(x))
    assert calls


def test_nested_blocks_put_back_once(calls):
    module, x = layers()[0], torch.randn(3, SIZE)
    with onednn.by_onednn(module):
        with onednn.by_onednn(module):
            module(x)
        assert "forward" in module.__dict__
        module(x)
    assert "forward" not in module.__dict__ and len(calls) == 2


def test_a_forward_set_meanwhile_stays():
    module = layers()[0]
    with onednn.by_onednn(module):
        module.forward = abs
    assert module(torch.tensor(-1.0)) == 1


class Doubled(Conv1D):
    def forward(self, x):
        return 2 * super().forward(x)


class Other(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("module", [Doubled(SIZE, SIZE), Other(SIZE, SIZE)], ids=["Conv1D", "Linear"])
def test_a_class_with_a_forward_of_its_own_is_left_alone(module, calls):
    module, x = module.requires_grad_(False), torch.randn(3, SIZE)
    expected = module(x)
    with onednn.by_onednn(module):
        assert torch.equal(module(x), expected)
    assert not calls


def test_wrong_inputs_get_pytorchs_own_errors(calls):
    module = layers()[0]
    with onednn.by_onednn(module):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module(torch.randn(3, SIZE + 1))
        with pytest.raises(TypeError):
            module(torch.randn(3, SIZE), 1)
    assert not calls


def test_evaluations_run_on_it(monkeypatch, calls):
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    loaded = load_model("testbed-llama", dtype="fp32", device="cpu")
    stories = tasks.load("testbed", n=6, seed=0)
    ours = evaluate.score(loaded.model, loaded.tokenizer, stories, progress=False)
    text = " ".join(story.prompt for story in stories)
    perplexity = evaluate.perplexity(loaded.model, loaded.tokenizer, text, progress=False)
    assert calls
    monkeypatch.setattr(onednn, "outruns_mkl", lambda: False)
    eager = evaluate.score(loaded.model, loaded.tokenizer, stories, progress=False)
    for a, b in zip(ours.records, eager.records, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    assert perplexity.token == pytest.approx(
        evaluate.perplexity(loaded.model, loaded.tokenizer, text, progress=False).token, rel=1e-4
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_fisher_is_as_exact_as_without(monkeypatch, calls, checkpointing):
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    model = load_model("testbed-llama", dtype="fp32", device="cpu").model
    if checkpointing:
        model.gradient_checkpointing_enable()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(model.config.vocab_size, (n,), generator=generator) for n in (9, 17, 17, 5)]
    samples = [Sample(row, row) for row in rows]
    exact = fisher_diagonal(copy.deepcopy(model).double(), samples, progress=False)
    assert not calls
    ours = fisher_diagonal(model, samples, progress=False)
    assert calls and ours.implementations["linear@cpu"] == "onednn"
    assert set(ours.methods.values()) == {"captured"}
    monkeypatch.setattr(onednn, "outruns_mkl", lambda: False)
    eager = fisher_diagonal(model, samples, progress=False)
    assert "linear@cpu" not in eager.implementations

    def error(F):
        return max(float((F[n] - exact[n]).norm() / exact[n].norm()) for n in exact)

    assert error(ours) <= 5 * error(eager)
    assert not any("forward" in module.__dict__ for module in model.modules())
