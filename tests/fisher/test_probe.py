"""What the probe saw is no promise: batches that differ in kind are looked at again, and stay exact."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tomfisher
from tomfisher.fisher.layout import Layouts, kind_of
from tomfisher.fisher.probe import long_batches
from tomfisher.runtime.rules import EQUAL, PADDED, SINGLE, Rules
from tomfisher.sample import Sample

D = 32


def _samples(*lengths: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(len(lengths))
    ids = [torch.randint(3, 53, (length,), generator=generator) for length in lengths]
    return [Sample(i, i.clone(), name=f"s{n}") for n, i in enumerate(ids)]


class _Layer(nn.Module):
    """An MLP, and beside it a module that is used in a way that depends on the batch."""

    def __init__(self, inner: nn.Module, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.use = inner, use
        self.odd = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.use(self.odd, x)


def _length_in_the_weight(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x) if x.shape[1] <= 14 else odd(x) + nn.functional.linear(x, odd.weight)


def _twice_if_long(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x) if x.shape[1] <= 16 else odd(odd(x))


def _skipped_if_long(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x) if x.shape[1] <= 16 else torch.zeros_like(x)


def _read_directly_if_short(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x) if x.shape[1] > 5 else x @ odd.weight.T


def _in_chunks(odd: nn.Module, x: Tensor) -> Tensor:
    padded = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 8))
    return odd(padded.reshape(-1, 8, D)).reshape(padded.shape)[:, : x.shape[1]]


def _shared_by_all_samples(odd: nn.Module, x: Tensor) -> Tensor:
    positions = torch.arange(x.shape[1])[:, None] / 20 * torch.linspace(0, 1, D)
    return odd(positions.to(x.dtype)) * x


def _three_vectors(odd: nn.Module, x: Tensor) -> Tensor:
    return x * odd(torch.linspace(-1, 1, 3 * D).view(3, D).to(x.dtype)).sum(0)


def _two_vectors_each(odd: nn.Module, x: Tensor) -> Tensor:
    return x + odd(torch.stack([x.cumsum(1).tanh(), x.sin()], 2)).sum(2)


def _chosen_tokens(odd: nn.Module, x: Tensor) -> Tensor:
    """Of every sample the tokens above a threshold: their number is that of the samples now and then."""
    chosen = x[..., 0] > 1.4
    out = torch.zeros_like(x)
    out[chosen] = odd(x[chosen])
    return out


def _last_token(odd: nn.Module, x: Tensor) -> Tensor:
    return x + odd(x[:, 0])[:, None]


def _if_a_token_is_there(odd: nn.Module, x: Tensor) -> Tensor:
    there = (x[..., 3] > 1.9).any(1)
    return torch.where(there[:, None, None], odd(x), 0.5 * x) if bool(there.any()) else 0.5 * x


def _gated_to_zero_at_first(odd: nn.Module, x: Tensor) -> Tensor:
    gate = float(x.shape[1] == 10)
    return gate * (odd(x) + nn.functional.linear(x, odd.weight))


KINDS = {
    use.__name__.strip("_"): use
    for use in (
        _length_in_the_weight, _twice_if_long, _skipped_if_long, _read_directly_if_short, _in_chunks,
        _shared_by_all_samples, _three_vectors, _two_vectors_each, _chosen_tokens, _last_token, _if_a_token_is_there,
        _gated_to_zero_at_first,
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_use_of_a_module_is_exact(tiny: SimpleNamespace, kind: str) -> None:
    model = tiny.model("llama-gqa")
    model.model.layers[0].mlp = _Layer(model.model.layers[0].mlp, KINDS[kind])
    samples = _samples(
        20, 20, 10, 10, 10, 10, 4, 4, 4
    )  # 40 tokens a batch: what depends on T sees no padding
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="*.mlp.*", tokens_per_batch=40, progress=False)
    tiny.assert_exact(F, expected)
    assert F.methods["model.layers.0.mlp.odd.weight"].startswith(METHODS.get(kind, ""))
    assert F.methods["model.layers.1.mlp.up_proj.weight"] == "captured"


METHODS = {
    "skipped_if_long": "captured",
    "two_vectors_each": "captured",
    "length_in_the_weight": "fallback: capture differs from autograd",
    "twice_if_long": "fallback: its module is called 2 times in one pass",
    "gated_to_zero_at_first": "fallback: capture differs from autograd",
    "three_vectors": "fallback: shape (3, 32)",
    "shared_by_all_samples": "fallback: shape (",
    "in_chunks": "fallback: shape (",
    "last_token": "fallback: shape (",
}


def _time_major(m: nn.Module, x: Tensor) -> Tensor:
    return m(x.transpose(0, 1).reshape(-1, D)).view(x.shape[1], x.shape[0], D).transpose(0, 1)


LAYOUTS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], Callable[[nn.Module, Tensor], Tensor]]] = {
    "rows flipped": (lambda m, x: m(x), lambda m, x: m(x.flip(0)).flip(0)),
    "rolled": (lambda m, x: m(x), lambda m, x: m(x.roll(5, 1)).roll(-5, 1)),
    "reversed in time": (lambda m, x: m(x), lambda m, x: m(x.flip(1)).flip(1)),
    "time major": (lambda m, x: m(x.flatten(0, 1)).view_as(x), _time_major),
    "heads first": (
        lambda m, x: m(torch.stack([x, x.sin()], 1)).sum(1),
        lambda m, x: m(torch.stack([x, x.sin()])).sum(0),  # as many heads as samples
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lengths", [(30, 20, 16, 6, 5), (20, 20, 20, 6, 5)])
def test_how_a_batch_lies_in_memory_may_depend_on_its_length(
    tiny: SimpleNamespace, layout: str, lengths: tuple[int, ...]
) -> None:
    short, long = LAYOUTS[layout]
    model = tiny.model("llama-gqa")
    model.model.layers[0].mlp = _Layer(
        model.model.layers[0].mlp, lambda m, x: long(m, x) if x.shape[1] > 14 else short(m, x)
    )
    samples = _samples(*lengths)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="*.mlp.*", tokens_per_batch=1000, progress=False)
    tiny.assert_exact(F, expected)
    if layout in ("time major", "heads first"):  # the others keep a sample's rows together
        assert F.methods["model.layers.0.mlp.odd.weight"].startswith("fallback")
    assert F.methods["model.layers.1.mlp.up_proj.weight"] == "captured"


@pytest.mark.parametrize(
    ("batches", "budget", "expected"),
    [
        (PADDED, None, [[1, 2]]),
        (PADDED, 59, [[2, 3], [1]]),  # two of the longest do not fit into a batch
        (EQUAL, None, [[3, 4], [1]]),
        (SINGLE, None, [[1]]),
    ],
)
def test_what_is_looked_at_after_the_short_cuts(
    batches: str, budget: int | None, expected: list[list[int]]
) -> None:
    assert long_batches([5, 30, 20, 16, 16], Rules(batches=batches), budget) == expected


def test_what_no_sample_reaches_does_not_cost_the_batches(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(9)
    model.model.layers[0].tower = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    sizes: list[int] = []
    model.model.layers[0].register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    F = tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=1000, progress=False)
    assert max(sizes) == 9
    assert not any(bool(values.any()) for name, values in F.items() if ".tower." in name)
    assert set(F.implementations) == {"squared_gradient_@cpu"}
    expected = tiny.definition(model, samples)
    tiny.assert_exact(F, expected)


def test_a_parameter_that_only_some_batch_reaches_is_exact_there(tiny: SimpleNamespace) -> None:
    class Sometimes(nn.Module):
        """A bare scale per channel and position, which only tokens beyond the tenth use."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.late = nn.Parameter(torch.full((2, 1, D), 0.3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            return y * self.late.sum(0) if x.shape[1] == 10 else y

    model = tiny.model("llama-gqa")
    model.model.layers[0].mlp = Sometimes(model.model.layers[0].mlp)
    samples = _samples(20, 20, 4, 4, 4, 10, 10, 10, 10)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=40, progress=False)
    assert bool(F["model.layers.0.mlp.late"].any())
    tiny.assert_exact(F, expected)


def test_experts_in_modules_of_their_own_are_exact(tiny: SimpleNamespace) -> None:
    """Every expert gets the tokens that chose it: sometimes as many as there are samples."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(D, 6, bias=False)
            self.experts = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            weights, chosen = self.router(flat).softmax(-1).max(-1)
            out = torch.zeros_like(flat)
            for index, expert in enumerate(self.experts):
                mine = chosen == index
                if bool(mine.any()):
                    out[mine] = weights[mine, None] * expert(flat[mine])
            return out.view_as(x)

    model = tiny.model("llama-gqa")
    for layer in model.model.layers:
        layer.mlp = Mixture()
    samples = tiny.samples(12)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=100, progress=False)
    tiny.assert_exact(F, expected)


@pytest.mark.parametrize("family_of", ["mixtral", "gpt-oss"])
def test_a_second_look_adds_nothing(tiny: SimpleNamespace, family_of: str) -> None:
    """Another set of modules in some batches: what is captured otherwise, experts too, is not counted twice."""
    model = tiny.model(family_of)
    model.model.layers[0].self_attn = _Beside(model.model.layers[0].self_attn)
    samples = _samples(20, 20, 4, 4, 4, 10, 10, 10, 10)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=40, progress=False)
    tiny.assert_exact(F, expected)


class _Beside(nn.Module):
    """Attention, and in short sequences one more linear layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.short, self.usual = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, hidden_states: Tensor, *args: Any, **arguments: Any) -> tuple[Tensor, Any]:
        out, weights = self.inner(hidden_states, *args, **arguments)
        chosen = self.short if hidden_states.shape[1] < 6 else self.usual
        return out + chosen(hidden_states), weights


@pytest.mark.parametrize(
    ("shape", "batch", "kind"),
    [
        ((3, 5, 8), (3, 5), "samples"),
        ((3, 2, 8), (3, 5), "samples"),
        ((15, 8), (3, 5), "tokens"),
        ((15, 4, 8), (3, 5), "tokens"),
        ((1, 15, 8), (3, 5), "row"),
        ((3, 8), (3, 5), None),  # as many chosen tokens, or vectors that all samples share
        ((5, 8), (3, 5), None),
        ((1, 5, 8), (3, 5), None),
        ((5, 3, 8), (3, 5), None),
        ((3, 8), (3, 1), "tokens"),
    ],
)
def test_shapes_that_show_the_samples(
    shape: tuple[int, ...], batch: tuple[int, int], kind: str | None
) -> None:
    assert kind_of(torch.zeros(shape), batch) == kind


def _samples_turned_round(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x.flip(0)).flip(0)


def _tokens_turned_round(odd: nn.Module, x: Tensor) -> Tensor:
    return odd(x.flip(1)).flip(1)


def _samples_sorted(odd: nn.Module, x: Tensor) -> Tensor:
    order = x[:, 0, 0].argsort()
    return odd(x[order])[order.argsort()]


@pytest.mark.parametrize("use", [_samples_turned_round, _tokens_turned_round, _samples_sorted])
def test_padding_is_wherever_a_module_puts_it(
    tiny: SimpleNamespace, use: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    model = tiny.model("llama-gqa")
    model.model.layers[0].mlp = _Layer(model.model.layers[0].mlp, use)
    samples = _samples(12, 7, 20, 9, 30, 14)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params="*.mlp.*", progress=False)
    tiny.assert_exact(F, expected)
    assert F.methods["model.layers.0.mlp.odd.weight"] == "captured"


def test_a_layout_is_held_to() -> None:
    layouts = Layouts()
    assert layouts.objection("m", (torch.zeros(2, 5, 8),), (2, 5)) is None
    assert layouts.objection("m", (torch.zeros(3, 7, 8),), (3, 7)) is None
    assert "unlike before" in layouts.objection("m", (torch.zeros(21, 8),), (3, 7))
    assert layouts.objection("m", (torch.zeros(9, 9, 9),), (1, 4)) is None  # one sample: all of it is its
