"""What every public function asks before it begins: is this a model with numbers in it, does it take these tokens?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tomfisher.runtime.freed import is_freed, missing_weights
from tomfisher.runtime.positions import check_length
from tomfisher.runtime.sharded import is_sharded
from tomfisher.runtime.tensor_parallel import is_tensor_parallel
from tomfisher.sample import IGNORED, Sample

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)
Named = Callable[[int], str]


def check_model(model: Any) -> None:
    """Refuse what cannot be run: no model of transformers, one that takes two texts, one without values.

    Weights that accelerate keeps on the CPU or the disk are values: it brings them where they are needed.

    Raises:
        TypeError: it is not a causal language model of transformers.
        ValueError: weights are on the meta device and nobody brings them, or are still in their files.
    """
    check_causal(model)
    if (missing := _on_meta(model)) and not _is_offloaded(model):
        raise ValueError(
            f"{_some(missing)} of {type(model).__name__} are on the meta device: they hold no values. Load the "
            "weights first (from_pretrained, or to_empty and load_state_dict)."
        )
    check_in_memory(model)


def check_in_memory(model: nn.Module) -> None:
    """Refuse a model of which `open_model` has left weights in their files that a forward would read.

    Raises:
        ValueError: naming them.
    """
    if missing := missing_weights(model):
        raise ValueError(
            f"This needs the whole model in memory, but {_some(missing)} of {type(model).__name__} are in their files: "
            "open_model reads it layer by layer. Use tomfisher.models.load_model instead."
        )


def check_causal(model: Any) -> None:
    """Refuse what is no causal language model of transformers, whether its weights are in memory or not.

    Raises:
        TypeError: naming what it is.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(f"The model is wrapped in {type(model).__name__}. Pass what it wraps: model.module.")
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "The model is compiled, which hooks and names do not see through. Pass model._orig_mod."
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise TypeError(
            f"model must be a causal language model of transformers, got {type(model).__name__}. "
            "Load one with tomfisher.models.load_model or transformers.AutoModelForCausalLM.from_pretrained."
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(
            f"{type(model).__name__} has an encoder and a decoder, which take two texts. "
            "Use a causal (decoder-only) language model."
        )
    if getattr(model, "base_model", None) is model and _output_rows(model) is None:
        raise TypeError(
            f"{type(model).__name__} has no output layer, so it predicts nothing. Load the whole model: "
            "transformers.AutoModelForCausalLM.from_pretrained."
        )


def check_trainable(model: Any, what: str, split: bool = False, rows: bool = False) -> None:
    """`check_model`, and refuse weights of which autograd or a write would not see the numbers.

    Args:
        model: a causal language model of transformers.
        what: what cannot be done, to begin the message with.
        split: whether weights may be split over ranks by transformers' plans.
        rows: whether each rank may hold some rows of them, as FSDP2's `fully_shard` leaves them.

    Raises:
        TypeError: as for `check_model`; or weights are quantised, or spread over processes.
        ValueError: as for `check_model`; or weights are offloaded, or were made in `torch.inference_mode`.
    """
    check_model(model)
    if _is_offloaded(model):
        raise ValueError(
            f"{what} needs all weights in memory, but accelerate offloads {_some(_offloaded(model))} of "
            f"{type(model).__name__} to the CPU or the disk, from where copies come and go. Load it without "
            "offloading: with a device_map that fits into the devices' memory, on the CPU, or in bfloat16."
        )
    if packed := _quantised(model):
        raise TypeError(
            f"{what} needs weights that are floating-point numbers, but {_some(packed)} of {type(model).__name__} are "
            "quantised. Load the model without quantisation, in bfloat16 or float32, or call model.dequantize() first."
        )
    allowed = rows or (split and is_tensor_parallel(model))
    kinds = {n: p for n, p in model.named_parameters() if is_traceable_wrapper_subclass(p)}
    if sharded := [n for n, p in kinds.items() if not (allowed and is_sharded(p))]:
        raise TypeError(
            f"{what} needs whole plain tensors, but {_some(sharded)} of {type(model).__name__} are of another kind "
            f"({type(model.get_parameter(sharded[0])).__name__}). Load the model unsharded and without quantisation."
        )
    if dead := [n for n, p in model.named_parameters() if p.is_inference()]:
        raise ValueError(
            f"{what} needs weights that PyTorch can follow, but {_some(dead)} of {type(model).__name__} were made "
            "inside torch.inference_mode(). Load the model outside of it."
        )


def check_ids(model: Any, sequences: Iterable[Any], what: str | Named) -> None:
    """Refuse token ids that the model's embedding has no row for.

    Args:
        model: a causal language model of transformers.
        sequences: token ids of each text.
        what: what messages call text i: `what(i)`, or `what` and its number.

    Raises:
        TypeError: an id is not an integer.
        ValueError: an id is negative, or too large.
    """
    _check_range(sequences, _embedding_rows(model), what, "token id", "vocabulary")


def check_targets(model: Any, sequences: Iterable[Any], what: str | Named) -> None:
    """Refuse tokens that the model gives no probability to: its output layer may be smaller than its embedding.

    Args:
        model: a causal language model of transformers.
        sequences: ids of the tokens to be predicted in each text.
        what: as for `check_ids`.

    Raises:
        TypeError: an id is not an integer.
        ValueError: an id is negative, or too large.
    """
    rows = [n for n in (_embedding_rows(model), _output_rows(model)) if n is not None]
    _check_range(sequences, min(rows, default=None), what, "label", "output layer")


def check_samples(model: Any, samples: Sequence[Any]) -> None:
    """Refuse samples with ids that the model does not know, or with more tokens than it has positions for.

    Args:
        model: a causal language model of transformers.
        samples: at least one `Sample`.

    Raises:
        TypeError: one is no `Sample`.
        ValueError: the sample is named; or there is none.
    """
    if not samples:
        raise ValueError("There are no samples. Pass at least one.")
    for index, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise TypeError(
                f"samples[{index}] is a {type(sample).__name__}, not a tomfisher.Sample. "
                "Build samples with tomfisher.encode(tokenizer, texts)."
            )

    def called(index: int) -> str:
        return samples[index].called(f"sample {index}")

    check_ids(model, (sample.input_ids for sample in samples), called)
    check_targets(model, (s.labels[1:][s.labels[1:] != IGNORED] for s in samples), called)
    longest = max(range(len(samples)), key=lambda index: len(samples[index]))
    way_out = "Shorten the samples: max_length of encode, --max_length or --control_length."
    check_length(model, len(samples[longest]), called(longest), way_out)


def why_not_finite(model: nn.Module) -> str:
    """Where a number that is not finite may come from: the first broken weight by name, or too narrow a dtype."""
    broken = [
        n
        for n, p in model.named_parameters()
        if not (p.is_meta or is_freed(p)) and not bool(torch.isfinite(p).all())
    ]
    broken += [n for n, b in model.named_buffers() if not b.is_meta and bool(b.isnan().any())]  # -inf: a mask
    if broken:
        return f"The weight {broken[0]} holds NaN or Inf ({len(broken)} such tensors): load the model again."
    return "All weights are finite, so activations overflow: load the model in float32 or bfloat16."


def _check_range(
    sequences: Iterable[Any], rows: int | None, what: str | Named, kind: str, where: str
) -> None:
    for i, sequence in enumerate(sequences):
        low, high = _extremes(sequence, what, i)
        if low < 0:
            raise ValueError(f"{_called(what, i)} holds the {kind} {low}; ids begin at 0. Leave padding out.")
        if rows is not None and high >= rows:
            raise ValueError(
                f"{_called(what, i)} holds the {kind} {high}, but the model's {where} has {rows} entries. "
                "Use the tokenizer that belongs to the model; where tokens were added to it: "
                "model.resize_token_embeddings(len(tokenizer))."
            )


def _called(what: str | Named, i: int) -> str:
    return what(i) if callable(what) else f"{what} {i}"


def _extremes(sequence: Any, what: str | Named, i: int) -> tuple[int, int]:
    """Smallest and largest id; (0, 0) where there is none."""
    if isinstance(sequence, Tensor):
        if sequence.ndim != 1:
            shape = tuple(sequence.shape)
            raise ValueError(f"{_called(what, i)} has ids of shape {shape}; one text is one vector of ids.")
        if sequence.is_floating_point() or sequence.is_complex() or sequence.dtype == torch.bool:
            raise _no_integers(_called(what, i), sequence.dtype)
        return (int(sequence.min()), int(sequence.max())) if sequence.numel() else (0, 0)
    ids = list(sequence)
    for entry in ids:
        if type(entry) is not int and (
            isinstance(entry, (bool, np.bool_)) or not hasattr(entry, "__index__")
        ):
            raise _no_integers(_called(what, i), type(entry).__name__)
        if isinstance(entry, Tensor) and (entry.ndim or entry.is_floating_point()):
            raise _no_integers(_called(what, i), entry.dtype)
    return int(min(ids, default=0)), int(max(ids, default=0))


def _no_integers(called: str, kind: object) -> TypeError:
    return TypeError(f"{called} holds ids of {kind}; token ids are integers. Encode the text again.")


def _embedding_rows(model: Any) -> int | None:
    try:
        rows = _rows(model.get_input_embeddings())
    except (AttributeError, NotImplementedError):  # transformers' own way of saying that there are none
        rows = None
    return (
        rows if rows is not None else getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    )


def _output_rows(model: Any) -> int | None:
    try:
        return _rows(model.get_output_embeddings())
    except (AttributeError, NotImplementedError):
        return None


def _rows(module: Any) -> int | None:
    """Rows of an embedding, or outputs of a linear layer; None where neither can be told."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.dtype in FLOATS:
        return int(weight.shape[0])
    known = getattr(module, "num_embeddings", getattr(module, "out_features", None))
    return known if isinstance(known, int) else None


def _on_meta(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def _is_offloaded(model: nn.Module) -> bool:
    return any(True for _ in _offloading(model))


def _offloading(model: nn.Module) -> Iterator[str]:
    """Names of the modules whose weights accelerate fetches for a call and takes away after it."""
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        parts = getattr(hook, "hooks", (hook,))
        if any(getattr(h, "offload", False) or type(h).__name__ == "CpuOffload" for h in parts):
            yield name


def _offloaded(model: nn.Module) -> list[str]:
    """Names of offloaded weights; of modules where their weights are on a real device at the moment."""
    return _on_meta(model) or [name or "all weights" for name in _offloading(model)]


def _quantised(model: nn.Module) -> list[str]:
    """Names of weights that are codes of numbers: integers, 8-bit floats, packed tensors of a library."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.is_quantized or not (parameter.dtype in FLOATS or parameter.is_complex())
    ]
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            names.append(name)
        elif not any(p.ndim > 1 and p.dtype in FLOATS for p in module._parameters.values() if p is not None):
            names += [
                f"{name}.{key}" for key, b in module._buffers.items() if b is not None and _is_packed(b)
            ]
    return names


def _is_packed(buffer: Tensor) -> bool:
    return buffer.ndim > 1 and (
        buffer.dtype in _PACKED or (buffer.is_floating_point() and buffer.itemsize == 1)
    )


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more weights"
