"""Running a plan: caches of shared beginnings, and what a forward of packed rows needs to know."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tomfisher.evaluate.plan import Batch, Row, Step
from tomfisher.runtime.batches import pad
from tomfisher.runtime.forward import accepts, cache_argument

ATTENTION_WITH_MASK = ("sdpa", "eager")
OTHER_ATTENTION = ("flash_attention_2", "flash_attention_3", "flex_attention")
KNOWN_HOOKS = ("transformers.", "tomfisher.")
KNOWN_MODULES = ("torch.", "transformers.", "tomfisher.", "bitsandbytes.", "peft.", "torchao.")


def can_share(model: Any) -> bool:
    """Whether the model's cache holds nothing but keys and values, so that it can be repeated.

    Only architectures of transformers itself are trusted; state-space and hybrid models keep a running state
    of another kind and are run whole. So are models that turn keys by frequencies that depend on the length of the
    text: their cache is of another length.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not type(model).__module__.startswith("transformers.models."):
        return False
    if cache_argument(model) is None or not accepts(model, "use_cache"):
        return False
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return False
    if _rotary_kinds(model.config) & {"dynamic", "longrope"} or not has_cache(model):
        return False
    kinds = _cache_layers(model)
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def has_cache(model: Any) -> bool:
    """Whether transformers can make the model's cache, which takes the number of layers (BLT's config has none)."""
    return hasattr(model.config.get_text_config(decoder=True), "num_hidden_layers")


def can_pack(model: Any) -> bool:
    """Whether rows may be tried side by side in one sequence: the model takes positions and a mask.

    A layer with a window counts tokens by where they stand, and so do the hooks of `tomfisher.interventions.intervene`:
    such models share by steps. So does one that `computes_as_made` does not know. Whether the rows come out right is
    asked of the model itself (`ChoiceEvaluator`).
    """
    from transformers.cache_utils import DynamicLayer

    return (
        can_share(model)
        and all(accepts(model, argument) for argument in ("position_ids", "attention_mask"))
        and model.config._attn_implementation in ATTENTION_WITH_MASK
        and _cache_layers(model) == {DynamicLayer}
        and not getattr(model.config, "sliding_window", None)  # Mistral has it whatever its layers are called
        and computes_as_made(model)
        and not any(_origin(hook).startswith("tomfisher.") for hook in _hooks(model))
    )


def execute(
    model: Any, plan: Sequence[Step | Batch], rows: Sequence[Row], device: torch.device, cache: Any = None
) -> Iterator[tuple[Batch, Any]]:
    """Walk a plan depth first; yields every batch with its own cache of `past` tokens (None when `past` is 0)."""
    from transformers.cache_utils import DynamicCache

    for part in plan:
        branch = _select(cache, part.parents, device) if part.past else None
        if isinstance(part, Batch):
            yield part, branch
            continue
        branch = branch if branch is not None else DynamicCache(config=model.config)
        ids = pad([rows[r].ids[part.past : part.end] for r in part.nodes], device)
        arguments: dict[str, Any] = {str(cache_argument(model)): branch, "use_cache": True}
        if accepts(model, "logits_to_keep"):
            arguments["logits_to_keep"] = 1
        model(input_ids=ids, **arguments)
        yield from execute(model, part.then, rows, device, branch)


def batch_arguments(model: Any, batch: Batch, cache: Any, device: torch.device) -> dict[str, Any]:
    """What the forward of a batch needs beside its ids: the cache, and positions and mask where rows are packed."""
    arguments: dict[str, Any] = {}
    if cache is not None:
        arguments = {str(cache_argument(model)): cache, "use_cache": True}
    if any(len(pack.paths) > 1 for pack in batch.packs):
        positions, visible = layout(batch)
        arguments["position_ids"] = positions.to(device)
        arguments["attention_mask"] = _mask(model, visible.to(device))
        if accepts(model, "output_router_logits"):
            # the balance of experts, for a loss, knows no such mask
            arguments["output_router_logits"] = False
    return arguments


def layout(batch: Batch) -> tuple[Tensor, Tensor]:
    """Positions `[B, T]` of the tokens of a batch in their rows, and bool `[B, 1, T, past + T]`: what they see.

    Every token sees the cache, those of its row before it, and itself; padding sees the cache and itself.
    """
    length = max(len(pack.ids) for pack in batch.packs)
    positions = torch.full((len(batch.packs), length), batch.past)
    visible = torch.eye(length, dtype=torch.bool).repeat(len(batch.packs), 1, 1)
    for i, pack in enumerate(batch.packs):
        for path in pack.paths.values():
            at = torch.tensor(path)
            positions[i, at] = batch.past + torch.arange(len(path))
            visible[i, at[:, None], at] = torch.ones(len(path), len(path), dtype=torch.bool).tril()
    cached = torch.ones(len(batch.packs), length, batch.past, dtype=torch.bool)
    return positions, torch.cat([cached, visible], dim=2)[:, None]


def _mask(model: Any, visible: Tensor) -> Tensor:
    """The mask as transformers makes it: bool for PyTorch's attention, else what is added to the scores."""
    if model.config._attn_implementation == "sdpa":
        return visible
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill_(~visible, lowest)


def computes_as_made(model: Any) -> bool:
    """Whether nobody has put anything into the model that may count tokens by where they stand in a forward.

    That is a hook, of a module or of all, a forward that was replaced, a module of a class that is neither torch's nor
    transformers' nor of a library that keeps tokens apart, or an attention function of somebody's own. The hooks of
    transformers only look, those of `tomfisher.interventions` know caches, and accelerate replaces forwards to move
    tensors between devices.

    Args:
        model: a causal language model of transformers.
    """
    from torch.nn.modules import module as registry

    everywhere = (*registry._global_forward_hooks.values(), *registry._global_forward_pre_hooks.values())
    return (
        model.config._attn_implementation in (*ATTENTION_WITH_MASK, *OTHER_ATTENTION)
        and not everywhere
        and all(_origin(hook).startswith(KNOWN_HOOKS) for hook in _hooks(model))
        and all(
            type(module).__module__.startswith(KNOWN_MODULES) and not _is_replaced(module)
            for module in model.modules()
        )
    )


def _is_replaced(module: Any) -> bool:
    forward = vars(module).get("forward")
    known = hasattr(module, "_hf_hook") or _origin(forward).startswith("tomfisher.")
    return forward is not None and not known


def _hooks(model: Any) -> Iterator[Any]:
    for module in model.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


def _origin(hook: Any) -> str:
    return str(getattr(hook, "__module__", ""))


def _rotary_kinds(config: Any) -> set[Any]:
    """The kinds of rotary frequencies, of the model or of its kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, dict)}


def _cache_layers(model: Any) -> set[type]:
    from transformers.cache_utils import DynamicCache

    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def _select(cache: Any, parents: Sequence[int], device: torch.device) -> Any:
    """A cache with the given rows; the original stays as it was, because its layers never write in place."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(torch.tensor(parents, device=device))
    return chosen
