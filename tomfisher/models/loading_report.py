"""Whether every weight of a model came from its files: what transformers reports of a load, judged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

NAMED = 3
HEADS = ("lm_head.", "embed_out.", "output.")
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_WRAPPED = re.compile(rf"(?:^|\.)({'|'.join(WRAPPERS)})\.")
_PARALLEL = "module."
_TABLES = re.compile(r"(inv_freq|(cos|sin)_cached|masked_bias|position_ids|causal_mask|alibi)$")
_MASKS = re.compile(r"(^|\.)(attn|attention)\.bias$")


def wrapper_renaming(info: Mapping[str, Any]) -> dict[str, str]:
    """Patterns that take the names of wrappers out of a checkpoint's keys, when weights are missing for want of that.

    `torch.compile` writes `_orig_mod.`, data parallelism `module.`, and FSDP and activation checkpointing their own.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` reported.

    Returns:
        A `key_mapping` for a second `from_pretrained`; empty when no wrapper is to blame.
    """
    unexpected = set(info["unexpected_keys"])
    if not info["missing_keys"] or not unexpected:
        return {}
    wrappers = sorted({name for key in unexpected for name in _WRAPPED.findall(key)})
    # transformers applies a pattern once to a key, and a wrapper may stand in it twice
    renaming = {pattern: "" for name in wrappers for pattern in (rf"{name}\.", f"{name}[.]")}
    if all(_WRAPPED.sub(".", key).lstrip(".").startswith(_PARALLEL) for key in unexpected):
        renaming[rf"^{re.escape(_PARALLEL)}"] = ""
    return renaming


def check_complete(
    model: nn.Module, info: Mapping[str, Any], source: str, way_out: str | None = None
) -> list[str]:
    """Refuse a model with weights that are not from its files, or that left weights of its decoder out.

    Args:
        model: the loaded model.
        info: what `from_pretrained(..., output_loading_info=True)` reported.
        source: the model's name, for messages.
        way_out: what to do about it; None where the files are a folder with a config.json.

    Returns:
        Weights in the files that the model has no use for (a vision tower, a value head), sorted; said in a warning.

    Raises:
        ValueError: a weight is missing, has another shape in the file, or has no value; or the file holds more of
            the decoder than the model took.
    """
    total = len(model.state_dict())
    missing = sorted(info["missing_keys"])
    reshaped = sorted(info["mismatched_keys"], key=lambda entry: str(entry[0]))
    if missing or reshaped:
        raise ValueError(
            _incomplete(
                *(source, total, missing, reshaped, sorted(info["unexpected_keys"]), model.config, way_out)
            )
        )
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise ValueError(
            f"Model {source!r}: {len(empty)} of its weights have no values (device meta), {first_of(empty)}. "
            "Load it without offloading and without a device map."
        )
    unexpected = set(info["unexpected_keys"])
    modules = _Modules(model)
    dropped = sorted(key for key in unexpected if modules.own(key))
    if dropped:
        raise ValueError(
            f"Model {source!r}: its files hold {len(dropped)} weights that the model has no place for, "
            f"{first_of(dropped)}. config.json describes fewer layers or other modules than the checkpoint has, so "
            f"the model would not be the one that was saved. {way_out or 'Use the config.json that belongs to it.'}"
        )
    left = sorted(key for key in unexpected if not modules.is_table(key))
    if left:
        warnings.warn(
            f"The files of {source!r} hold {len(left)} weights that are no part of its text model, {first_of(left)}; "
            "they are left out.",
            stacklevel=2,
        )
    return left


def first_of(names: Collection[str]) -> str:
    """The names where they are few, else "the first a, b, c"."""
    shown = ", ".join(list(names)[:NAMED])
    return shown if len(names) <= NAMED else f"the first {shown}"


def _incomplete(
    source: str,
    total: int,
    missing: list[str],
    reshaped: list[tuple[str, Iterable[int], Iterable[int]]],
    unexpected: list[str],
    config: Any,
    way_out: str | None,
) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of its {total} weights are not in its files, {first_of(missing)}")
    if reshaped:
        shown = [
            f"{name} {tuple(there)} where config.json asks {tuple(here)}" for name, there, here in reshaped
        ]
        parts.append(f"{len(reshaped)} of its {total} weights have another shape there, {first_of(shown)}")
    if way_out is None:
        head = bool(missing) and not reshaped and all(name.startswith(HEADS) for name in missing)
        whole = "Complete the files, or use the config.json that belongs to these weights."
        way_out = _way_to_a_head(config) if head else whole
    others = f" The files hold {len(unexpected)} others, such as {unexpected[0]}." if unexpected else ""
    return f"Model {source!r} is not whole: {'; and '.join(parts)}. They would be random.{others} {way_out}"


def _way_to_a_head(config: Any) -> str:
    """What to do about a missing head; that it is tied is advised only where models of this type tie it by default."""
    saved = ", ".join(getattr(config, "architectures", None) or [])
    if saved and not re.search(r"CausalLM|LMHead|ConditionalGeneration", saved):
        return f"The files are those of a {saved}, which has no language-model head. Use those of the language model."
    if getattr(type(config.get_text_config()), "tie_word_embeddings", False) is True:
        return 'If the head is the embedding itself, set "tie_word_embeddings": true in config.json.'
    return "The language-model head is missing. Complete the files, or use those of the whole model."


class _Modules:
    """The modules of a model by name, asked about keys that a checkpoint has and the model has not."""

    def __init__(self, model: Any) -> None:
        self.prefix = f"{model.base_model_prefix}." if getattr(model, "base_model_prefix", "") else ""
        self.by_name = dict(model.named_modules())
        self.lists = {name for name, module in self.by_name.items() if isinstance(module, nn.ModuleList)}
        config = model.config.get_text_config()
        self.layers = getattr(config, "num_hidden_layers", None) or 0
        self.further = getattr(config, "num_nextn_predict_layers", None) or 0

    def own(self, key: str) -> bool:
        """Whether a key belongs to a list of layers, or to a module, that the model has."""
        if self.is_table(key) or self._predicts_further_tokens(key):
            return False
        return any(self._in_layers(name) or self._in_module(name) for name in self._spellings(key))

    def is_table(self, key: str) -> bool:
        """Whether a key is a fixed table that old checkpoints hold: rotary frequencies, causal masks, positions."""
        if _TABLES.search(key):
            return True
        parents = (self.by_name.get(name.rpartition(".")[0]) for name in self._spellings(key))
        # a bias of a module called attention is the mask if that module is no linear layer
        return bool(_MASKS.search(key)) and any(p is not None and any(p.children()) for p in parents)

    def _spellings(self, key: str) -> tuple[str, ...]:
        """A checkpoint may be of the model without its head, whose names lack the first part."""
        return (key, f"{self.prefix}{key}") if self.prefix else (key,)

    def _in_layers(self, name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[:i]) in self.lists and parts[i].isdigit() for i in range(1, len(parts) - 1))

    def _in_module(self, name: str) -> bool:
        parent = self.by_name.get(name.rpartition(".")[0])
        return parent is not None and not any(isinstance(m, nn.ModuleList) for m in parent.modules())

    def _predicts_further_tokens(self, key: str) -> bool:
        """Whether a key is of the layers after the last one, which predict further tokens and no model here runs."""
        layer = re.search(r"(^|\.)layers\.(\d+)\.", key)
        return layer is not None and 0 <= int(layer[2]) - self.layers < self.further
