"""The definitions that the census compares with, by plain calls of the model alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tomfisher.sample import IGNORED, Sample

# products of matrices, and which of their arguments are multiplied
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2)}
# rows of a table by number: what comes out is an activation
LOOKUPS = ("embedding", "index", "index_select", "gather")


class _Double(TorchFunctionMode):
    """Whatever asks for float32 gets float64: norms, rotations and softmaxes are often computed in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _copied(model: nn.Module, **settings: Any) -> nn.Module:
    """A model of the same weights, made anew: some keep states of their last run that cannot be copied."""
    copied = type(model)._from_config(copy.deepcopy(model.config), **settings)
    copied.load_state_dict(model.state_dict())
    for name, buffer in model.named_buffers():
        copied.get_buffer(name).copy_(buffer)
    return copied.eval()


def _eager(model: nn.Module) -> nn.Module:
    """The model with experts one by one: the fused kernels know no float64 and show no products."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def fisher(model: nn.Module, samples: Iterable[Sample]) -> dict[str, Tensor]:
    """F_i = Σ_n (∂ℓ_n/∂θ_i)² of every parameter, in float64, one sample at a time, by autograd.

    The model is a float64 copy; where its code computes in float32 whatever the model's dtype, that becomes float64.
    """
    reference = _eager(_copied(model).double())
    F = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for sample in samples:
            reference.zero_grad()
            with _Double():
                logits = reference(input_ids=sample.input_ids[None], use_cache=False).logits[0, :-1]
            nn.functional.cross_entropy(logits, sample.labels[1:], ignore_index=IGNORED).backward()
            for name, p in reference.named_parameters():
                if p.grad is not None:
                    F[name] += p.grad.square()
    finally:
        torch.set_default_dtype(default)
    return F


def linear_weights(model: nn.Module, ids: Tensor) -> set[str]:
    """Names of the parameters that a forward on text multiplies activations by, as matrices.

    Every product that PyTorch runs is looked at, so nothing depends on names, classes or shapes of modules.
    """
    reference = _eager(_copied(model))
    products = _Products(dict(reference.named_parameters()))
    with torch.no_grad(), products:
        reference(input_ids=ids[None], use_cache=False)
    return products.found


def inside_layers(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the parameters that are in layers, which are the modules of a list that have modules of their own.

    BLT's `patcher` is a language model beside it, which says where to cut the text and gets no gradient.
    """
    layers = [
        f"{name}.{child}."
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.ModuleDict))
        for child, layer in module.named_children()
        if list(layer.children()) and ".patcher." not in name
    ]
    return {name for name in names if name.startswith(tuple(layers))}


def allowed(model: nn.Module, demanded: set[str]) -> set[str]:
    """What a selection may hold: what is demanded, and linear layers beside it that no text reaches.

    Decoders of translation models have an attention to the encoder in every layer, which text alone does not use.
    """
    layers = {_layer(name) for name in demanded}
    beside = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _layer(name) in layers
    }
    return demanded | beside


def _layer(name: str) -> str:
    """A name up to its first number."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: number + 1])


class _Products(TorchDispatchMode):
    """Watches for matrix products of what is computed from parameters alone with what is not."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in reversed(parameters.items())}
        self.shapes = {name: p.ndim for name, p in parameters.items()}
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            left, right = (self._origin(args[i]) for i in PRODUCTS[name])
            if bool(left) != bool(right):
                self.found |= {n for n in left | right if self.shapes[n] > 1}
        given = [a for a in _tensors((args, kwargs)) if a.is_floating_point()]
        origins = [self._origin(a) for a in given]
        if origins and all(origins) and name not in LOOKUPS:
            for tensor in _tensors(out):
                tensor.made_of = frozenset().union(*origins)
        return out

    def _origin(self, tensor: Tensor) -> frozenset[str]:
        """The parameters that a tensor is computed from, if it is computed from parameters alone."""
        name = self.names.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        return frozenset([name]) if name else getattr(tensor, "made_of", frozenset())


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def next_logprobs(model: nn.Module, ids: list[int]) -> Tensor:
    """Log-probabilities `[T, vocabulary]` after every token of one sequence, alone and without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def attention_maps(model: nn.Module, ids: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """The attention `[H, T, T]` of the given layers, those with attention, where the model hands it out when asked.

    Rows sum to one, whether or not the model takes off what a learned sink gets.
    """
    reference = _copied(model, attn_implementation="eager")
    with torch.no_grad():
        maps = reference(input_ids=ids[None], use_cache=False, output_attentions=True).attentions or ()
    maps = [m for m in maps if m is not None and m.shape[-2:] == (len(ids), len(ids))]
    if len(maps) != len(layers):
        return {}
    return {i: rows_to_one(m[0]) for i, m in zip(layers, maps, strict=True)}


def rows_to_one(attention: Tensor) -> Tensor:
    """Attention in float64 whose rows sum to one."""
    return attention.double() / attention.double().sum(-1, keepdim=True)
