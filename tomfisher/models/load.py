"""`load_model`: a hub id, a local folder, a GGUF file or a built-in name becomes model and tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models import hub
from tomfisher.models.adapters import Adapter, adapter_in, merge
from tomfisher.models.bases import adapter_folder, base_of
from tomfisher.models.gguf import recorded
from tomfisher.models.locate import locate, otherwise
from tomfisher.models.parallel import plan_of
from tomfisher.models.pretrained import Place, check_kind, place_of, read_model, read_tokenizer
from tomfisher.runtime.parts import first_values
from tomfisher.runtime.sharded import is_sharded
from tomfisher.runtime.torch_state import plain_torch

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
FINGERPRINT_VALUES = 64


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and what they are.

    Args:
        model: a transformers causal language model on its device.
        tokenizer: its tokenizer; `pad_token` is set.
        name: what the user asked for.
        identity: `source`, `revision`, `model_type`, `config_sha256`, `weights_sha256` (of the first 64
            values of every parameter, rounded to bf16), `num_parameters`, `dtype`, and `loading` where there was
            something special about it: an adapter merged, a GGUF file, names or weights left out.
        opened: the `OpenedModel` that reads the model's weights from their files when they are needed, or the
            `ShardedModel` that gathers them from the ranks; None where they are in memory.
    """

    model: Any
    tokenizer: Any
    name: str
    identity: dict[str, Any]
    opened: Any = None

    @property
    def subject(self) -> Any:
        """What takes the place of the model where layers may come and go."""
        return self.model if self.opened is None else self.opened

    def identity_now(self) -> dict[str, Any]:
        """The identity; of a model that is read from its files also what is known of what was read so far."""
        return self.identity if self.opened is None else dict(self.opened.identity())


@plain_torch()
def load_model(
    source: str,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    parallel: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, every weight of it from its files.

    Args:
        source: a built-in name (see `tomfisher ls models`), a local folder, a `.gguf` file, or a hub id.
        dtype: "fp32", "bf16", "fp16", "fp64", a floating-point `torch.dtype`, "checkpoint" (as it was
            saved), or "auto": bf16 on CUDA, fp32 elsewhere.
        device: where the weights go; None is CUDA when there is one, else the CPU.
        trust_remote_code: let transformers run code that comes with the model.
        revision: hub branch, tag or commit.
        parallel: how transformers splits it over the ranks of the process group, all of which make this call: "tensor",
            its matrices; "experts", the same, and experts whole on their ranks. None: each process has the whole model.

    Returns:
        The model in evaluation mode, with tokenizer, name and identity.

    Raises:
        ValueError: nothing of that name exists or can be reached; weights are missing, have another shape, or are
            left out of the decoder; whatever else transformers makes of the files; an unknown dtype; a tokenizer
            without a single special token; a model that cannot be split as `parallel` says.
        ModuleNotFoundError: a package that this source needs is missing.
    """
    place = resolve_device(device)
    precision = "auto" if dtype == "checkpoint" else resolve_dtype(dtype, place)
    origin = find_place(source, trust_remote_code, revision)
    model, tokenizer, loading = _read(origin, precision, plan_of(parallel))
    set_pad_token(tokenizer, source)
    model = model.to(place).eval()
    identity = identify(model, source)
    identity["revision"] = identity["revision"] or hub.commit_of(origin.location, revision)
    return LoadedModel(model, tokenizer, source, identity | ({"loading": loading} if loading else {}))


def load_structure(source: str, trust_remote_code: bool = False, revision: str | None = None) -> nn.Module:
    """A model as its config describes it, without its weights: every tensor is on the device meta.

    Args:
        source: as for `load_model`, or a config.json.
        trust_remote_code: as for `load_model`.
        revision: as for `load_model`.

    Raises:
        ValueError: nothing of that name exists or can be reached, or it is no causal language model.
        ModuleNotFoundError: a package that this source needs is missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(source).expanduser()
    folder = str(path.parent) if path.name == "config.json" and path.is_file() else source
    origin = find_place(folder, trust_remote_code, revision)
    check_kind(origin)
    with origin.explained("the config"), torch.device("meta"):
        config = AutoConfig.from_pretrained(origin.location, **origin.options)
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model.eval()


def has_weights(source: str) -> bool:
    """Whether there are weights to load: not in a folder that holds a config alone, nor behind a config.json itself."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.suffix == ".gguf"
    kinds = ("*.safetensors", "*.bin", "*.gguf")
    return not path.is_dir() or any(True for kind in kinds for _ in path.glob(kind))


def find_place(source: str, trust_remote_code: bool, revision: str | None) -> Place:
    """Where a model is read from: `locate` and `place_of`.

    Raises:
        ValueError: as for `locate`.
        ModuleNotFoundError: as for `locate`.
    """
    location = locate(source)
    way_out = f"Check the files in {location}." if Path(location).is_dir() else otherwise()
    return place_of(source, location, way_out, trust_remote_code, revision)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or CUDA when there is one, or the CPU.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be like 'cpu' or 'cuda:0', got {device!r}.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not available: this machine has {torch.cuda.device_count()} CUDA device(s). "
            "Use 'cpu'."
        )
    return place


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A name such as "bf16" as a `torch.dtype`; "auto" is bf16 on CUDA and fp32 elsewhere.

    Raises:
        ValueError: unknown name, or no floating-point dtype.
    """
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise ValueError(
                f"dtype must be a floating-point dtype, got {dtype}. Use one of {', '.join(DTYPES)}."
            )
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}.")
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """The short name of a dtype: `torch.bfloat16` -> "bf16"."""
    return next((name for name, value in DTYPES.items() if value == dtype), str(dtype).removeprefix("torch."))


def fast_cpu_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def identify(model: nn.Module, source: str) -> dict[str, Any]:
    """What a result records about a model; equal for equal weights, whatever the machine."""
    return describe_source(model, source) | {"weights_sha256": fingerprint(model, heads_of(model))}


def describe_source(model: nn.Module, source: str) -> dict[str, Any]:
    """The part of `identify` that does not look at the weights' values."""
    config: Any = model.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _UNSTABLE_KEYS}
    return {
        "source": source,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "config_sha256": hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": dtype_name(next(model.parameters()).dtype),
    }


_UNSTABLE_KEYS = (
    *("_name_or_path", "dtype", "torch_dtype", "transformers_version", "_attn_implementation"),
    "distributed_config",
)


def fingerprint(model: nn.Module, heads: Mapping[str, bytes]) -> str:
    """SHA-256 of name, shape and first values of every parameter; `heads` as `head_of` gives them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(heads[name])
    return digest.hexdigest()


def head_of(parameter: Tensor) -> bytes:
    """The first 64 values of a parameter, rounded to bf16."""
    head = parameter.detach().flatten()[:FINGERPRINT_VALUES].to("cpu", torch.bfloat16, copy=True)
    return head.contiguous().view(torch.int16).numpy().tobytes()


def heads_of(model: nn.Module) -> dict[str, bytes]:
    """`head_of` every parameter; of those that are split over ranks, put together, so that all ranks have to ask."""
    return {
        name: head_of(first_values(parameter, FINGERPRINT_VALUES) if is_sharded(parameter) else parameter)
        for name, parameter in model.named_parameters()
    }


def _read(place: Place, dtype: torch.dtype | str, plan: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and what is worth recording about the load; an adapter is merged into its model."""
    folder = adapter_folder(place)
    adapter = None if folder is None else adapter_in(folder, place.source)
    if adapter is None:
        return _read_plain(place, dtype, plan)
    if plan is not None:
        raise ValueError(
            f"Model {place.source!r} is an adapter, which is merged into whole weights. Merge and save it in one "
            "process (tomfisher.models.load_model, save_pretrained), and split what was saved."
        )
    with base_of(adapter, place) as base:
        model, tokenizer, loading = _read_plain(base, dtype, None)
    _check_base(adapter, model, place.source)
    if adapter.has_tokenizer():
        tokenizer = read_tokenizer(place._replace(location=str(adapter.folder)))
    model, merging = merge(model, adapter, place.source)
    return model, tokenizer, loading | merging


def _check_base(adapter: Adapter, base: Any, source: str) -> None:
    """Refuse a base that is not the one an adapter says it was trained on, in its `training.json`.

    Raises:
        ValueError: its weights are others.
    """
    record = adapter.folder / "training.json"
    trained_on = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    expected = trained_on.get("base_weights_sha256")
    found = fingerprint(base, heads_of(base))
    if expected is not None and expected != found:
        raise ValueError(
            f"Model {source!r} is an adapter for weights with the fingerprint {expected[:12]}, but those of "
            f"{adapter.base!r} have {found[:12]}: another model or version. Load the one that it was trained on."
        )


def _read_plain(place: Place, dtype: torch.dtype | str, plan: Any) -> tuple[Any, Any, dict[str, Any]]:
    check_kind(place)
    tokenizer = read_tokenizer(place)
    model, loading = read_model(place, dtype, plan)
    return model, tokenizer, loading | recorded(place.location)


def set_pad_token(tokenizer: Any, source: str) -> None:
    """Give a tokenizer without a padding token one of its other special tokens; padding is always masked.

    Raises:
        ValueError: it has no special token at all.
    """
    if tokenizer.pad_token is not None:
        return
    for name in ("eos_token", "bos_token", "unk_token"):
        if getattr(tokenizer, name) is not None:
            tokenizer.pad_token = getattr(tokenizer, name)
            return
    raise ValueError(
        f"The tokenizer of {source!r} has no special token at all (pad, eos, bos, unk). Set one, e.g. "
        "tokenizer.eos_token = '</s>', and save it again with tokenizer.save_pretrained(folder)."
    )
