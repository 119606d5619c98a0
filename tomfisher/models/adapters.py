"""A folder with a peft adapter: the model it was trained on, with the adapter merged into its weights."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tomfisher.files import sha256_of_file
from tomfisher.models.loading_errors import explained
from tomfisher.models.loading_report import first_of

SETTINGS = "adapter_config.json"
# they put virtual tokens, or keys and values, before every text: there is nothing to add to a weight
PROMPT_TYPES = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
    *("CPT", "CARTRIDGE", "ADAPTION_PROMPT"),
)
PROBE_LENGTH = 8
# how far merging may move logits, relative to the largest: the rounding of the merged weights
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Adapter(NamedTuple):
    """An adapter that can be merged.

    Args:
        folder: with `adapter_config.json` and the adapter's weights.
        base: the model it belongs to as its settings name it; None where the folder itself holds that model.
        revision: hub revision of that model, if the settings name one.
        kind: peft's name of its type, such as "LORA".
    """

    folder: Path
    base: str | None
    revision: str | None
    kind: str

    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with it."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def adapter_in(folder: Path, source: str) -> Adapter | None:
    """The adapter in a folder, or None where there is none.

    Raises:
        ValueError: its settings cannot be read, it is of a type that no weights can take up, it was trained for
            another task than language modelling, it does not name its model, or its weights are not there.
        ModuleNotFoundError: peft is not installed.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return None
    with explained("the adapter", source, f"Mend its {SETTINGS}."):
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS} holds no settings but a {type(settings).__name__}.")
    kind, task = str(settings.get("peft_type")), settings.get("task_type")
    whole = any(
        path.name.startswith(("model", "pytorch_model")) and path.suffix in (".safetensors", ".bin")
        for path in folder.iterdir()
    )
    base = None if whole else settings.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ValueError(
            f"Model {source!r}: base_model_name_or_path in its {SETTINGS} must be a text, got {base!r}. Put the "
            "model's name or folder there."
        )
    if kind in PROMPT_TYPES:
        raise ValueError(
            f"Model {source!r} is an adapter of type {kind}: it puts something of its own before every text, which no "
            f"weight can take up. Use its model{f' {base!r}' if base else ''} itself, or an adapter that can be "
            "merged, such as LoRA."
        )
    if task not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"Model {source!r} is an adapter for the task {task}, no language model. Use an adapter of task CAUSAL_LM."
        )
    if not whole and not base:
        raise ValueError(
            f"Model {source!r} is an adapter of type {kind} that does not name its model. Put the model's name or "
            f'folder into its {SETTINGS} as "base_model_name_or_path".'
        )
    if not any(folder.glob("adapter_model*")):
        raise ValueError(
            f"Model {source!r} is an adapter of type {kind} without its weights: there is no adapter_model.safetensors "
            f"beside its {SETTINGS}. Complete the folder, or fetch it again."
        )
    if importlib.util.find_spec("peft") is None:
        raise ModuleNotFoundError(
            f"Model {source!r} is an adapter of type {kind}, which is merged into its model by the package peft. "
            "Install with: pip install peft"
        )
    return Adapter(folder, base, settings.get("revision") if base else None, kind)


def merge(model: Any, adapter: Adapter, source: str) -> tuple[Any, dict[str, Any]]:
    """Add an adapter to the weights of the model it belongs to.

    Args:
        model: that model, plain; changed.
        adapter: see `adapter_in`.
        source: the model's name, for messages.

    Returns:
        A model with the same parameters as before and the adapter in their values, and what is worth recording.

    Raises:
        ValueError: peft cannot read or merge it; it lacks weights, or holds some for modules that the model has not;
            or the merged model does not compute what the model with the adapter beside it does.
    """
    import peft

    names = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with explained("the adapter", source, "Check that it belongs to this model."), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of, lost weights and tied heads, is refused below
        with_adapter = peft.PeftModel.from_pretrained(model, str(adapter.folder)).eval()
        taken = with_adapter.load_adapter(str(adapter.folder), "default")  # once more, for what it reports
        lost = [*taken.missing_keys, *taken.unexpected_keys]
        if lost:
            raise ValueError(
                f"{len(lost)} of its weights are absent, or have no place in the model, {first_of(lost)}."
            )
        beside = _logits(with_adapter)
        merged = with_adapter.merge_and_unload()
    if set(names) != {name for name, _ in merged.named_parameters()}:
        raise ValueError(
            f"Model {source!r}: merging its adapter of type {adapter.kind} leaves modules of peft in the model. Use an "
            "adapter whose parts can all be merged, such as LoRA."
        )
    _check_same(beside, _logits(merged), adapter, source)
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(names[name])
    return merged, _recorded(adapter)


def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(PROBE_LENGTH)[None] % model.config.get_text_config().vocab_size
    with torch.inference_mode():
        return model(input_ids=ids).logits


def _check_same(beside: torch.Tensor, merged: torch.Tensor, adapter: Adapter, source: str) -> None:
    difference = (beside - merged).abs().max().item()
    largest = beside.abs().max().item()
    if not difference <= _TOLERANCES[beside.dtype] * largest:
        raise ValueError(
            f"Model {source!r}: with its adapter of type {adapter.kind} merged it gives other logits than with the "
            f"adapter beside it (off by {difference:.3g}, the largest is {largest:.3g}), as when the adapter changes a "
            "head that is tied to the embeddings. Merge and save it in a way that keeps what it computes."
        )


def _recorded(adapter: Adapter) -> dict[str, Any]:
    weights = [path for path in sorted(adapter.folder.glob("adapter_model*")) if path.is_file()]
    hashes = {path.name: sha256_of_file(path) for path in weights}
    return {"adapter": {"type": adapter.kind, "base": adapter.base, "sha256": hashes}}
