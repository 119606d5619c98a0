"""What counts as a linear map of the decoder's layers, whatever holds it, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn.utils import prune

import tomfisher
from tomfisher.fisher import select_parameters
from tomfisher.fisher.linear_maps import coverage, decoder_linear_weights, linear_maps

D = 32  # the width of the tiny models


def _matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.1)


class _Plus(nn.Module):
    """An MLP and something beside it."""

    def __init__(self, inner: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.inner, self.extra = inner, extra

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.extra(x)


class _Holder(nn.Module):
    """Parameters and a function of them and the vectors `[B, T, D]`."""

    def __init__(
        self, function: Callable[[nn.Module, Tensor], Tensor], **parameters: nn.Parameter | nn.Module
    ) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _kernel(m: nn.Module, x: Tensor) -> Tensor:
    padded = nn.functional.pad(x.transpose(1, 2), (2, 0))
    return nn.functional.conv1d(padded, m.kernel, groups=D).transpose(1, 2)


def _state_space(m: nn.Module, x: Tensor) -> Tensor:
    decay = torch.exp(-torch.exp(m.A_log.float()))  # [D, N]
    state, out = torch.zeros(len(x), D, 4), []
    for t in range(x.shape[1]):
        state = state * decay + x[:, t, :, None]
        out.append((state @ m.C_proj)[..., 0])
    return torch.stack(out, 1)


def _stacked(m: nn.Module, x: Tensor) -> Tensor:
    up, down = m.up.view(3, 8, D), m.down.view(3, 8, D)
    return sum(torch.relu(x @ up[e].T) @ down[e] for e in range(2))  # the third is never reached


LINEAR: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "bare matrix": (lambda: _Holder(lambda m, x: x @ m.mix, mix=_matrix(D, D)), {"mix"}),
    "transposed and cast": (
        lambda: _Holder(lambda m, x: nn.functional.linear(x.double(), m.mix.double()).float(), mix=_matrix(D, D)),
        {"mix"},
    ),
    "einsum": (
        lambda: _Holder(lambda m, x: torch.einsum("btd,hdk->btk", x, m.heads), heads=_matrix(2, D, D)), {"heads"}
    ),
    "low rank": (
        lambda: _Holder(lambda m, x: torch.tanh(x @ m.a) @ m.b, a=_matrix(D, 4), b=_matrix(4, D)), {"a", "b"}
    ),
    "low rank, multiplied first": (
        lambda: _Holder(lambda m, x: x @ (m.a @ m.b), a=_matrix(D, 4), b=_matrix(4, D)), {"a", "b"}
    ),
    "scaled by a norm": (
        lambda: _Holder(lambda m, x: nn.functional.linear(x, m.w / m.w.norm()), w=_matrix(D, D)), {"w"}
    ),
    "parts stacked anew": (
        lambda: _Holder(lambda m, x: x @ torch.cat([m.left, m.right], 1), left=_matrix(D, 16), right=_matrix(D, 16)),
        {"left", "right"},
    ),
    "experts stacked in two dimensions": (
        lambda: _Holder(_stacked, up=_matrix(24, D), down=_matrix(24, D)), {"up", "down"}
    ),
    "experts gathered by token": (
        lambda: _Holder(
            lambda m, x: torch.bmm(m.experts[x[..., 0].gt(0).long().flatten()], x.flatten(0, 1)[..., None]).view_as(x),
            experts=_matrix(2, D, D),
        ),
        {"experts"},
    ),
    "attention of torch": (
        lambda: _Holder(lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(D, 2, batch_first=True)),
        {"attention.in_proj_weight", "attention.out_proj.weight"},
    ),
    "a list of parameters": (
        lambda: _Holder(lambda m, x: x @ m.list[0] @ m.list[1], list=nn.ParameterList([_matrix(D, 4), _matrix(4, D)])),
        {"list.0", "list.1"},
    ),
    "a state-space layer": (
        lambda: _Holder(_state_space, A_log=_matrix(D, 4), C_proj=_matrix(4, 1)), {"C_proj"}
    ),
}  # fmt: skip
NOT_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "gate per channel": lambda: _Holder(lambda m, x: x * m.gate, gate=_matrix(1, D)),
    "bias of positions": lambda: _Holder(lambda m, x: x + m.position[: x.shape[1]], position=_matrix(64, D)),
    "table of positions": lambda: _Holder(
        lambda m, x: x + m.table(torch.arange(x.shape[1])), table=nn.Embedding(64, D)
    ),
    "scores of attention": lambda: _Holder(
        lambda m, x: (x @ x.transpose(1, 2) + m.bias[: x.shape[1], : x.shape[1]]) @ x, bias=_matrix(64, 64)
    ),
    "depthwise kernel": lambda: _Holder(_kernel, kernel=_matrix(D, 1, 3)),
    "kernel of a module": lambda: _Holder(
        lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=nn.Conv1d(D, D, 1, bias=False)
    ),
    "norm of two dimensions": lambda: _Holder(
        lambda m, x: m.norm(x.unflatten(-1, (2, -1))).flatten(-2), norm=nn.LayerNorm((2, D // 2))
    ),
    "learned tokens": lambda: _Holder(
        lambda m, x: x + (m.project(m.tokens) @ x.transpose(1, 2)).sum() * 0.01,
        tokens=_matrix(3, D),
        project=nn.Linear(D, D, bias=False),
    ),
}


def _with(tiny: SimpleNamespace, extra: nn.Module) -> nn.Module:
    model = tiny.model("llama-gqa")
    model.model.layers[1].mlp = _Plus(model.model.layers[1].mlp, extra)
    return model


@pytest.mark.parametrize("kind", LINEAR)
def test_a_matrix_is_a_linear_map_whatever_holds_it(tiny: SimpleNamespace, kind: str) -> None:
    build, expected = LINEAR[kind]
    model = _with(tiny, build())
    found = decoder_linear_weights(model)
    prefix = "model.layers.1.mlp.extra."
    assert {name.removeprefix(prefix) for name in found if name.startswith(prefix)} == expected
    assert len(found) == 14 + len(expected)


@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_what_is_added_or_multiplied_entry_by_entry_is_none(tiny: SimpleNamespace, kind: str) -> None:
    model = _with(tiny, NOT_LINEAR[kind]())
    found = {name for name in decoder_linear_weights(model) if ".extra." in name}
    assert found <= {"model.layers.1.mlp.extra.project.weight"}


def test_bare_maps_are_exact(tiny: SimpleNamespace) -> None:
    model = _with(tiny, LINEAR["experts stacked in two dimensions"][0]())
    samples = tiny.samples(4)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert any("extra.up" in name for name in F)
    tiny.assert_exact(F, expected)


def test_an_expert_that_no_token_reaches_is_what_its_siblings_are(tiny: SimpleNamespace) -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = _matrix(D, D)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w

    experts = nn.ModuleList([Expert(), Expert(), Expert()])
    model = _with(tiny, _Holder(lambda m, x: m.experts[0](x), experts=experts))
    found = {name for name in decoder_linear_weights(model) if ".extra." in name}
    assert found == {f"model.layers.1.mlp.extra.experts.{i}.w" for i in range(3)}


def test_parameters_that_share_one_memory_are_told_apart(tiny: SimpleNamespace) -> None:
    memory = torch.randn(2 * D * D) * 0.1
    model = _with(
        tiny,
        _Holder(
            lambda m, x: x @ m.mix + m.position[: x.shape[1]],
            position=nn.Parameter(memory[: D * D].view(D, D)),
            mix=nn.Parameter(memory[D * D :].view(D, D)),
        ),
    )
    assert {n.split(".")[-1] for n in decoder_linear_weights(model) if ".extra." in n} == {"mix"}


def test_a_model_of_known_kinds_is_not_run(tiny: SimpleNamespace) -> None:
    model = tiny.model("llama-gqa")
    model.forward = None  # would raise
    assert len(decoder_linear_weights(model)) == 14


def test_asking_leaves_the_model_as_it_was(tiny: SimpleNamespace) -> None:
    model = tiny.model("mixtral").train()
    model.model.layers[0].mlp.gate.weight.requires_grad_(False)
    before = [(len(m._forward_pre_hooks), m.training) for m in model.modules()]
    gradients = [p.requires_grad for p in model.parameters()]
    assert "model.layers.0.mlp.gate.weight" in decoder_linear_weights(model)
    assert [(len(m._forward_pre_hooks), m.training) for m in model.modules()] == before
    assert [p.requires_grad for p in model.parameters()] == gradients


TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA = {**TEXT, "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}


def _gemma3() -> nn.Module:
    config = tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(**GEMMA, sliding_window=8),
        vision_config=tf.SiglipVisionConfig(**TEXT, image_size=28, patch_size=14),
        mm_tokens_per_image=4, image_token_index=63, boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config).eval()


def _git() -> nn.Module:
    """Its image encoder lies inside the module that decodes text."""
    vision = {**TEXT, "image_size": 28, "patch_size": 14}
    config = tf.GitConfig(vision_config=vision, **TEXT, vocab_size=64, max_position_embeddings=64)
    return tf.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("build", "prefix", "count"), [(_gemma3, "model.language_model.layers.", 14), (_git, "git.encoder.layer.", 12)]
)  # fmt: skip
def test_towers_and_projectors_are_no_part_of_the_decoder(
    tiny: SimpleNamespace, build: Callable[[], nn.Module], prefix: str, count: int
) -> None:
    torch.manual_seed(0)
    model = build()
    found = decoder_linear_weights(model)
    assert len(found) == count and all(name.startswith(prefix) for name in found)
    F = tomfisher.fisher_diagonal(model, tiny.samples(3), progress=False)
    assert set(F.methods.values()) == {"captured"}
    assert F.metadata["coverage"]["share"] == 1.0 and F.metadata["coverage"]["missing"] == []


def test_layers_are_found_where_they_have_no_list(tiny: SimpleNamespace) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 4)
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 8)

        def get_input_embeddings(self) -> nn.Module:
            return self.embed

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    assert set(decoder_linear_weights(Decoder())) == {"first.weight", "second.weight"}


def test_coverage_counts_weights_and_names_what_is_missing(tiny: SimpleNamespace) -> None:
    model = tiny.model("mamba")
    maps = linear_maps(model)
    linear = maps.weights
    total = sum(p.numel() for p in linear.values())
    F = tomfisher.fisher_diagonal(model, tiny.samples(2), progress=False)
    whole = coverage(maps, F.methods)
    step = sum(p.numel() for name, p in linear.items() if "dt_proj" in name)
    assert (whole.weights, whole.captured, whole.fallback, whole.share) == (total, total - step, step, 1.0)
    part = coverage(maps, {name: method for name, method in F.methods.items() if "x_proj" not in name})
    assert part.missing == [name for name in linear if "x_proj" in name] and part.share < 1


PARAMETRIZED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "weight_norm": (nn.utils.parametrizations.weight_norm, "parametrizations.weight.original1"),
    "weight_norm of old": (nn.utils.weight_norm, "weight_v"),
    "orthogonal": (nn.utils.parametrizations.orthogonal, "parametrizations.weight.original"),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm, "parametrizations.weight.original"),
    "spectral_norm of old": (nn.utils.spectral_norm, "weight_orig"),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.2), "weight_orig"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_weight_that_is_computed_from_parameters_is_covered(tiny: SimpleNamespace, kind: str) -> None:
    parametrize, name = PARAMETRIZED[kind]
    model = tiny.model("llama-gqa")
    parametrize(model.model.layers[0].mlp.up_proj)
    found = decoder_linear_weights(model)
    assert len(found) == 14 and f"model.layers.0.mlp.up_proj.{name}" in found
    samples = tiny.samples(3)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert F.metadata["coverage"]["share"] == 1.0
    assert F.methods[f"model.layers.0.mlp.up_proj.{name}"].startswith("fallback")
    if kind == "weight_norm":  # the others keep a state that a copy in float64 does not share
        tiny.assert_exact(F, tiny.definition(model, samples))


@pytest.mark.parametrize("tokens", [8, 30])
def test_a_matrix_that_only_longer_texts_use_is_found(tiny: SimpleNamespace, tokens: int) -> None:
    model = _with(tiny, _Holder(lambda m, x: x @ m.w if x.shape[1] >= tokens else x, w=_matrix(D, D)))
    assert "model.layers.1.mlp.extra.w" in decoder_linear_weights(model)


def test_a_matrix_of_which_nothing_is_known_is_named_and_counts(tiny: SimpleNamespace) -> None:
    use = lambda m, x: x @ m.w * m.gate if x.shape[1] > 40 else x * m.gate  # noqa: E731
    model = _with(tiny, _Holder(use, w=_matrix(D, D), gate=_matrix(1, D)))
    name = "model.layers.1.mlp.extra.w"
    assert list(linear_maps(model).unseen) == [name]
    F = tomfisher.fisher_diagonal(model, tiny.samples(2), progress=False)
    weights = sum(p.numel() for p in decoder_linear_weights(model).values())
    assert F.metadata["coverage"]["missing"] == [name]
    assert F.metadata["coverage"]["share"] == weights / (weights + D * D)
    F = tomfisher.fisher_diagonal(model, tiny.samples(2), params="all", progress=False)
    assert F.metadata["coverage"]["share"] == 1.0


def test_the_presets_are_subsets_of_each_other(tiny: SimpleNamespace, family: str) -> None:
    model = tiny.model(family)
    linear = decoder_linear_weights(model)
    assert select_parameters(model, "decoder-linear").keys() == linear.keys()
    assert linear.keys() <= select_parameters(model, "all").keys()
