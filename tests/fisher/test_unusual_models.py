"""Models that do what few models do: in place, without an embedding module, with parameters of odd shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tomfisher

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    # scales its embeddings in place
    "ctrl": lambda: tf.CTRLConfig(vocab_size=53, n_positions=64, n_embd=32, dff=48, n_layer=2, n_head=4),
    # an activation with two parameters of one element
    "apertus": lambda: tf.ApertusConfig(
        **SMALL, num_key_value_heads=2, intermediate_size=48, rope_parameters=ROPE, dtype="float32"
    ),
    # a linear layer of several groups, whose output is not as wide as its weight has rows
    "deepseek-v4": lambda: tf.DeepseekV4Config(
        **{**SMALL, "num_hidden_layers": 4},
        moe_intermediate_size=24,
        head_dim=16,
        q_lora_rank=16,
        num_experts_per_tok=2,
        n_routed_experts=4,
        o_groups=2,
        o_lora_rank=8,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=4,
        sliding_window=8,
        hc_mult=2,
        hc_sinkhorn_iters=3,
    ),
}


def _model(config: tf.PretrainedConfig) -> nn.Module:
    torch.manual_seed(1)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("params", ["all", "decoder-linear"])
def test_they_equal_the_definition(tiny: SimpleNamespace, kind: str, params: str) -> None:
    model, samples = _model(CONFIGS[kind]()), tiny.samples(5)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, params=params, progress=False)
    tiny.assert_exact(F, expected)


class _InPlace(nn.Embedding):
    """Scales and shifts its own output."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).mul_(math.sqrt(8)).add_(0.1)


class _Bare(nn.Module):
    """Looks its rows up itself: no `nn.Embedding` anywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


def _scaled_in_place(model: nn.Module) -> None:
    inner = model.model
    inner.embed_tokens.register_forward_hook(lambda module, ids, output: output.mul_(3.0))


def _embedding_in_place(model: nn.Module) -> None:
    embedding = _InPlace(53, 32)
    embedding.weight = nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.model.embed_tokens = embedding


def _two_embeddings(model: nn.Module) -> None:
    second = nn.Embedding(53, 32)
    model.model.second = second
    model.model.embed_tokens.register_forward_hook(lambda module, ids, output: output + second(ids[0]))


def _bare_table(model: nn.Module) -> None:
    model.model.embed_tokens = _Bare(model.model.embed_tokens.weight)


def _embedding_not_called(model: nn.Module) -> None:
    table, original = model.model.embed_tokens, model.model.forward

    def forward(input_ids: Tensor, **arguments: Any) -> Any:
        vectors = nn.functional.embedding(input_ids, table.weight)
        return original(**{**arguments, "inputs_embeds": vectors})

    model.model.forward = forward


BEGINNINGS = [
    _scaled_in_place,
    _embedding_in_place,
    _two_embeddings,
    _bare_table,
    _embedding_not_called,
]


@pytest.mark.parametrize("change", BEGINNINGS, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_however_tokens_become_vectors(
    tiny: SimpleNamespace, change: Callable[[nn.Module], None], checkpointing: bool
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(5)
    change(model)
    # the reference is a copy, whose patched methods would still be the original's: so a model of its own in float64
    reference = tiny.model("llama-gqa")
    change(reference)
    reference.load_state_dict(model.state_dict())
    expected = _autograd(reference.double().eval(), samples)
    if checkpointing:
        tiny.enable_checkpointing(model)
    for params in ("decoder-linear", "all"):
        F = tomfisher.fisher_diagonal(model, samples, params=params, progress=False)
        tiny.assert_exact(F, expected)
        if params == "decoder-linear":
            assert set(F.methods.values()) == {"captured"}


def _autograd(model: nn.Module, samples: list[tomfisher.Sample]) -> dict[str, Tensor]:
    F = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for sample in samples:
        model.zero_grad()
        logits = model(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1]
        nn.functional.cross_entropy(logits, sample.labels[1:]).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                F[name] += p.grad.square()
    return F


class _Factor(nn.Module):
    """One factor of all entries."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class _Squared(_Factor):
    """Not affine in its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor**2


class _Divides(_Factor):
    """Cannot be run with its parameter at zero."""

    def forward(self, x: Tensor) -> Tensor:
        if not bool((self.factor != 0).all()):
            raise ZeroDivisionError("no factor of zero")
        return x / self.factor


class _Repeated(nn.Module):
    """Four parameters that act on eight entries each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, 0.8, 1.1, 1.3]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.repeat_interleave(x.shape[-1] // 4)


class _Grouped(nn.Linear):
    """Two blocks on the diagonal: the output is folded into groups."""

    def forward(self, input: Tensor) -> Tensor:
        halves = input.unflatten(-1, (2, -1)).unbind(-2)
        blocks = self.weight.unflatten(0, (2, -1)).unbind(0)
        return torch.stack([h @ w.T for h, w in zip(halves, blocks, strict=True)], -2)


@pytest.mark.parametrize(
    ("module", "method"),
    [
        (_Factor(), "captured"),
        (_Squared(), "fallback: capture differs from autograd"),
        (_Divides(), "fallback: its closed form raises ZeroDivisionError: no factor of zero"),
        (_Repeated(), "fallback: its gradient by weight is 32 wide, its parameter is made for 4"),
        (
            nn.Sequential(_Grouped(16, 32, bias=False), nn.Flatten(-2)),
            "fallback: its output is 16 wide, its parameter is made for 32",
        ),
    ],
    ids=["factor", "squared", "divides", "repeated", "grouped"],
)
def test_a_closed_form_that_does_not_fit_is_a_reason_not_the_end(
    tiny: SimpleNamespace, module: nn.Module, method: str
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(5)
    projection = model.model.layers[0].self_attn.o_proj
    model.model.layers[0].self_attn.o_proj = nn.Sequential(projection, module)
    F = tomfisher.fisher_diagonal(model, samples, params="all", progress=False)
    name = next(n for n in F if ".o_proj.1." in n)
    assert F.methods[name].startswith(method)
    assert sum(r.startswith("fallback") for r in F.methods.values()) == (method != "captured")
    tiny.assert_exact(F, tiny.definition(model, samples))


def test_a_selection_that_no_sample_reaches_is_zero(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-gqa")
    model.model.unused = nn.Linear(4, 4)
    F = tomfisher.fisher_diagonal(model, tiny.samples(3), params="model.unused.*", progress=False)
    assert all(not bool(values.any()) for values in F.values()) and len(F) == 2


class _Recomputed(nn.Module):
    """A layer that the model itself checkpoints, re-entrantly."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, **arguments: Any) -> Any:
        return checkpoint(
            functools.partial(self.layer, **arguments), hidden, use_reentrant=torch.is_grad_enabled()
        )


@pytest.mark.parametrize("params", ["all", "decoder-linear", "model.layers.1.*"])
def test_layers_that_are_checkpointed_re_entrantly_are_exact(tiny: SimpleNamespace, params: str) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(5)
    expected = tiny.definition(model, samples)
    model.model.layers = nn.ModuleList(_Recomputed(layer) for layer in model.model.layers)
    F = tomfisher.fisher_diagonal(
        model, samples, params=params.replace("layers.1", "layers.1.layer"), progress=False
    )
    assert F.methods["model.layers.1.layer.mlp.up_proj.weight"] == "captured"
    tiny.assert_exact(
        F,
        {
            name.replace("layers.0", "layers.0.layer").replace("layers.1", "layers.1.layer"): value
            for name, value in expected.items()
        },
    )


class _Shift(nn.Module):
    """A bias and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class _Beside(nn.Module):
    """An MLP, and a function of its output and of some modules."""

    def __init__(self, inner: nn.Module, use: Callable[[Any, Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.inner, self.use, self.extra = inner, use, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.extra, self.inner(x))


def _changed_in_place(extra: Any, h: Tensor) -> Tensor:
    shifted = extra[0](h)
    h.mul_(2.0)
    return shifted + h


ODD: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module]]] = {
    "input changed in place": (_changed_in_place, _Shift),
    "no outputs": (lambda extra, h: h + extra[0](h).sum(-1, keepdim=True), lambda: nn.Linear(32, 0)),
    "no inputs": (lambda extra, h: h + extra[0](h[..., :0]), lambda: nn.Linear(0, 32)),
    "sparse gradient": (
        lambda extra, h: h + extra[0](torch.arange(h.shape[1])), lambda: nn.Embedding(64, 32, sparse=True)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_what_plain_autograd_runs_is_exact(tiny: SimpleNamespace, kind: str) -> None:
    use, build = ODD[kind]
    model, samples = tiny.model("llama-gqa"), tiny.samples(5)
    model.model.layers[0].mlp = _Beside(model.model.layers[0].mlp, use, build())
    F = tomfisher.fisher_diagonal(model, samples, params="all", progress=False)
    expected = {name: value.to_dense() for name, value in tiny.definition(model, samples).items()}
    assert all(F[name].shape == expected[name].shape for name in expected)
    kept = tomfisher.FisherDiagonal(
        {name: F[name] for name in F if F[name].numel()}, F.num_samples, F.num_tokens, F.methods
    )
    tiny.assert_exact(kept, {name: expected[name] for name in kept})


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_a_gradient_are_refused(tiny: SimpleNamespace, hook: str) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(2)
    weight = model.model.layers[0].mlp.up_proj.weight
    handle = getattr(weight, hook)(lambda *_: None)
    with pytest.raises(ValueError, match=r"0\.mlp\.up_proj\.weight has hooks on its gradient"):
        tomfisher.fisher_diagonal(model, samples, progress=False)
    assert tomfisher.fisher_diagonal(model, samples, "attention-qk", progress=False)
    handle.remove()
    assert tomfisher.fisher_diagonal(model, samples, progress=False)


def test_a_model_without_a_backward_pass_in_evaluation_is_refused_in_words(tiny: SimpleNamespace) -> None:
    config = tf.ReformerConfig(
        vocab_size=53, hidden_size=16, num_attention_heads=2, attention_head_size=8, feed_forward_size=24,
        attn_layers=["local"], is_decoder=True, axial_pos_embds=False, max_position_embeddings=64,
        local_attn_chunk_length=16, use_cache=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="has no backward pass in evaluation mode"):
        tomfisher.fisher_diagonal(tf.ReformerModelWithLMHead(config), tiny.samples(3), progress=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_in_words(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-gqa")
    model.model.norm = torch.jit.trace(model.model.norm, torch.ones(1, 2, 32), check_trace=False)
    with pytest.raises(ValueError, match=r"model\.norm is TorchScript"):
        tomfisher.fisher_diagonal(model, tiny.samples(3), progress=False)
