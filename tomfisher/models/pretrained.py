"""A folder or hub id read by transformers into a whole model and its tokenizer, or refused in one paragraph."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tomfisher.models import hub
from tomfisher.models.loading_errors import explained
from tomfisher.models.loading_report import check_complete, first_of, wrapper_renaming
from tomfisher.models.quiet import quiet_unless_terminal, report_kept
from tomfisher.models.stored import check_files, zero_matrices

GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


class Place(NamedTuple):
    """Where a model is read from.

    Args:
        source: the model as the user named it, for messages.
        location: a folder, or a hub id.
        options: what every `from_pretrained` of it gets.
        otherwise: the way out where an error suggests no other.
        unreachable: what to say when a file is lacking because the hub does not answer; None where it does.
    """

    source: str
    location: str
    options: dict[str, Any]
    otherwise: str
    unreachable: str | None = None

    @contextlib.contextmanager
    def explained(self, part: str) -> Iterator[None]:
        """Read one part of it: errors become one paragraph, and a hub that does not answer is not asked again."""
        with explained(part, self.source, self.otherwise, self.unreachable), contextlib.ExitStack() as stack:
            if self.unreachable is not None:
                stack.enter_context(hub.cache_only())
            yield


def place_of(
    source: str, location: str, otherwise: str, trust_remote_code: bool, revision: str | None
) -> Place:
    """Where to read from; a hub that does not answer is found out here, and only its cache is used then."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if Path(location).is_dir():
        return Place(source, location, options, otherwise)
    options["revision"] = revision
    if (why := hub.why_unreachable()) is None:
        return Place(source, location, options, otherwise)
    options["local_files_only"] = True
    return Place(source, location, options, otherwise, f"{hub.unreachable_sentence(source, why)} {otherwise}")


def check_kind(place: Place) -> None:
    """Refuse what is no decoder-only language model before its weights are read.

    Raises:
        ValueError: naming what it is; or its config cannot be read.
        ModuleNotFoundError: a package that it needs is missing.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with place.explained("the config"):
        config = AutoConfig.from_pretrained(place.location, **place.options)
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    two_sided = bool(getattr(config, "is_encoder_decoder", False))
    if known and not two_sided:
        return
    names = ", ".join(getattr(config, "architectures", None) or [])
    raise ValueError(
        f"Model {place.source!r} is of type {config.model_type}{f' ({names})' if names else ''}: "
        f"{'an encoder-decoder' if two_sided else 'no causal language model'}. What is needed is a decoder-only "
        "language model, one that AutoModelForCausalLM loads and that predicts each token from those before it, such "
        "as Llama, Qwen, Gemma, GPT-2 or Mamba."
    )


def read_model(place: Place, dtype: torch.dtype | str, plan: Any = None) -> tuple[Any, dict[str, Any]]:
    """The causal language model at a place, every weight of it from its files.

    Args:
        place: see `place_of`.
        dtype: of the weights, or "auto" for that of the files.
        plan: a `DistributedConfig` of transformers, by which each rank reads its part; None for all of it.

    Returns:
        The model on the CPU, and what is worth recording: `stripped`, names of wrappers taken out of the keys, and
        `left_out`, weights in the files that the model has no use for, and `zero`, matrices that are zero throughout
        (number and the first few).

    Raises:
        ValueError: it cannot be read, or is not whole; see `check_complete`.
        ModuleNotFoundError: a package that it needs is missing.
    """
    model, info, recorded = assemble(place, dtype, plan)
    recorded |= check_assembled(model, info, place.source)
    if zero := zero_matrices(model, place.source):
        recorded["zero"] = {"number": len(zero), "first": zero[:8]}
    return model, recorded


def assemble(
    place: Place, dtype: torch.dtype | str, plan: Any = None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model that transformers makes at a place, not yet judged; names of wrappers are taken out of the keys.

    Args:
        place: see `place_of`.
        dtype: as for `read_model`.
        plan: as for `read_model`.

    Returns:
        The model, what transformers reports of the load, and what is worth recording.

    Raises:
        ValueError: it cannot be read.
        ModuleNotFoundError: a package that it needs is missing.
    """
    if (folder := Path(place.location)).is_dir():
        check_files(folder, place.source)
    model, info = _load(place, dtype, {}, plan)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"Model {place.source!r}: transformers put an adapter beside its weights. Load it from a folder of its own."
        )
    if not (renaming := wrapper_renaming(info)):
        return model, info, {}
    model, info = _load(place, dtype, renaming, plan)
    model._weight_conversions = [c for c in model._weight_conversions if not _undoes(c, renaming)]
    return model, info, {"stripped": sorted({re.sub(r"\W", "", pattern) for pattern in renaming})}


def check_assembled(model: Any, info: dict[str, Any], source: str) -> dict[str, Any]:
    """`check_complete`, and what is worth recording of it.

    Raises:
        ValueError: as for `check_complete`.
    """
    left = check_complete(model, info, source)
    return {"left_out": {"number": len(left), "first": left[:8]}} if left else {}


def read_tokenizer(place: Place) -> Any:
    """The tokenizer at a place; a folder that declares a generic one gets what its tokenizer.json says.

    For some model types (Qwen2) AutoTokenizer takes the family's own class whatever the folder declares.

    Raises:
        ValueError: it cannot be read, or has no tokens but special ones, as transformers makes it up where there is
            none.
        ModuleNotFoundError: a package that it needs is missing.
    """
    tokenizer = _tokenizer(place)
    if tokenizer.get_vocab().keys() <= {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}:
        raise ValueError(
            f"Model {place.source!r} comes without a tokenizer: its {type(tokenizer).__name__} has no token but "
            "special ones. Put the tokenizer's files (such as tokenizer.json) beside config.json: "
            "tokenizer.save_pretrained(folder)."
        )
    return tokenizer


def _tokenizer(place: Place) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(place.location)
    declared = folder / "tokenizer_config.json"
    with quiet_unless_terminal(), place.explained("the tokenizer"):
        if declared.is_file() and (folder / "tokenizer.json").is_file():
            settings = json.loads(declared.read_text(encoding="utf-8"))
            if "auto_map" not in settings and settings.get("tokenizer_class") in GENERIC_TOKENIZERS:
                return PreTrainedTokenizerFast.from_pretrained(place.location)
        return AutoTokenizer.from_pretrained(place.location, **place.options)


def _load(
    place: Place, dtype: torch.dtype | str, renaming: dict[str, str], plan: Any
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    with quiet_unless_terminal(), report_kept() as report, place.explained("the weights"):
        try:
            return AutoModelForCausalLM.from_pretrained(
                place.location,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named and refused by check_complete
                key_mapping=renaming or None,
                distributed_config=plan,
                **place.options,
            )
        except RuntimeError as error:
            failed = re.findall(r"^(\S[^|\n]*?) *\| *CONVERSION", "\n".join(report), flags=re.MULTILINE)
            if not failed:
                raise
            raise ValueError(
                f"{len(failed)} weights are not what the model's own layout can be made of, {first_of(failed)}; "
                "parts of them are missing or have another shape."
            ) from error


def _undoes(conversion: Any, renaming: dict[str, str]) -> bool:
    """Whether a conversion that transformers remembers would put a wrapper's name back when the model is saved."""
    return any(pattern in renaming for pattern in conversion.source_patterns)
