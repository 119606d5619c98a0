"""What the sub-commands share: flags, help with commands to paste, and messages."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tomfisher import testbed
from tomfisher.files import atomic_path
from tomfisher.progress import note
from tomfisher.studies.config import Config
from tomfisher.studies.parsing import check_kappa

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
MODEL_FIELDS = ("model", "device", "trust_remote_code", "revision")
WORDING_FIELDS = ("gap", "bos", "chat_template", "system_prompt")
TASK_FIELDS = (
    *("task", "control", "limit", "method", "normalize"),
    *("max_new_tokens", "temperature", "top_p", "repetitions"),
    *WORDING_FIELDS,
)
PERPLEXITY_FIELDS = ("perplexity_tokens", "perplexity_window", "perplexity_stride")

OF_METHOD = {
    "choice": ("normalize",),
    "generate": ("max_new_tokens", "temperature", "top_p", "repetitions"),
}
INPUTS = (
    *("model", "models", "task", "control", "texts", "train", "config"),
    *("task_store", "control_store", "store", "stores"),
    *("mask", "damage", "random_like", "compare_masks"),
)


def add_command(
    subparsers: Any, name: str, help: str, description: str, examples: Iterable[str]
) -> argparse.ArgumentParser:
    """A sub-command whose help ends with commands to paste.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.
        name: the command.
        help: one line for the list of commands.
        description: what it does, in a few sentences.
        examples: whole command lines.

    Returns:
        The parser; give it its flags and `set_defaults(execute=...)`.
    """
    lines = "\n".join(f"  {example}" for example in examples)
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(parser=parser)
    return parser


def add_settings(
    parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup,
    *names: str,
    required: Iterable[str] = (),
    helps: Mapping[str, str] | None = None,
) -> None:
    """Flags for some of the study's settings, spelled like the fields of `Config`.

    A flag that is not given leaves no attribute behind (`given_settings`), so that YAML and defaults show through.

    Args:
        parser: the command's parser, or flags of it that exclude each other.
        names: fields of `Config`; none means all.
        required: fields that must be given.
        helps: help for fields that mean something else here than in a study, defaults included.
    """
    for name in names or tuple(FIELDS):
        field = FIELDS[name]
        default = "" if field.default in (None, "") else f" [{_shown(field.default)}]"
        text = (helps or {}).get(name, f"{field.metadata['help']}{default}")
        options: dict[str, Any] = {"help": text.replace("%", "%%")}
        if field.metadata["kind"] == "bool":
            options["action"] = "store_true"
        else:
            options["metavar"] = (
                "{" + ",".join(field.metadata["choices"]) + "}"
                if field.metadata["choices"]
                else (name.upper())
            )
        if field.metadata["bare"] is not None:
            options |= {"nargs": "?", "const": field.metadata["bare"]}
        parser.add_argument(
            f"--{name}", dest=name, default=argparse.SUPPRESS, required=name in tuple(required), **options
        )


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given on the command line."""
    return {name: value for name, value in vars(args).items() if name in FIELDS}


def setting(args: argparse.Namespace, name: str) -> Any:
    """One setting of a command that is not a whole study: as given, or its default, in its own type."""
    from tomfisher.studies.setting import coerce

    field = FIELDS[name]
    value = coerce(field, getattr(args, name, field.default))
    choices = field.metadata["choices"]
    if choices and value is not None and value not in choices:
        raise ValueError(f"--{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def wording(args: argparse.Namespace) -> dict[str, Any]:
    """How prompts are put, as `tomfisher.encode` takes it, of a command that is not a whole study."""
    values = {name: setting(args, name) for name in WORDING_FIELDS if name != "system_prompt"}
    return {**values, "system": setting(args, "system_prompt")}


def load_named_model(args: argparse.Namespace, dtype: str = "fp32") -> Any:
    """The model that --model, --device, --trust_remote_code and --revision name; see `tomfisher.models`."""
    from tomfisher.models import load_model

    return load_model(
        setting(args, "model"),
        dtype=dtype,
        device=setting(args, "device"),
        trust_remote_code=setting(args, "trust_remote_code"),
        revision=setting(args, "revision"),
    )


def perturbation_of(args: argparse.Namespace, loaded: Any, mask: Any) -> Any:
    """The perturbation that --mask, --fill, --compat and --seed name, not applied yet.

    Raises:
        ValueError: the mask is of another model.
    """
    from tomfisher.perturbation import perturb
    from tomfisher.studies.parsing import parse_fill
    from tomfisher.studies.stores import check_belongs

    check_belongs(mask.shapes, loaded.model, f"The mask {args.mask}")
    fill = parse_fill(setting(args, "fill"))
    return perturb(loaded.model, mask, fill=fill, seed=setting(args, "seed"), compat=setting(args, "compat"))


def note_own_texts(model: str, given: Mapping[str, Any], names: Iterable[str] = ("task", "control")) -> None:
    """Say that a testbed model is asked in its own language, where the user named no task or no control."""
    own = {
        name: text for name, text in testbed.texts_of(model).items() if name in names and name not in given
    }
    if own:
        named = ", ".join(f"{name} {text}" for name, text in own.items())
        flags = " and ".join(f"--{name}" for name in own)
        note(f"{model} knows only its own small language: using {named}. Choose others with {flags}.")


def kappa(text: str) -> float:
    """The argparse type of --kappa: a fraction strictly between 0 and 1."""
    try:
        return check_kappa(float(text), "kappa")
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            str(error) if "strictly" in str(error) else f"kappa must be a number such as 1e-4, got {text!r}."
        ) from None


def refuse_idle(config: Config, given: Mapping[str, Any], shard: bool = False) -> None:
    """Refuse flags that mean nothing for the way in which questions are answered, or F is taken.

    Args:
        config: the settings.
        given: those of them that the user gave.
        shard: whether weights are spread over processes, which keeps hidden states between layers as a stream does.

    Raises:
        ValueError: naming the flag, and the method that it is for.
    """
    for method, names in OF_METHOD.items():
        for name in names:
            if config.method != method and name in given and getattr(config, name) != FIELDS[name].default:
                raise ValueError(
                    f"--{name} belongs to --method {method} and does nothing with --method {config.method}. Leave it "
                    f"out, or give --method {method}."
                )
    if config.is_streamed and "analysis_prompts" in given and config.analysis_prompts:
        raise ValueError(
            "--analysis_prompts needs the whole model in memory, since the analysis looks into its layers. Leave it or "
            "--stream out; tomfisher analyze does it later on a machine that holds the model."
        )
    if "max_memory" in given and (shard or config.stream != "auto"):
        raise ValueError("--max_memory belongs to --stream auto. Leave one of the two out.")
    if "boundary" in given and not (shard or config.is_streamed or given.get("stream") == "auto"):
        raise ValueError("--boundary belongs to --stream. Leave it out, or give --stream.")


def streamed_if_too_large(config: Config, parallel: str | None, dtype: str | None = None) -> Config:
    """The config, streamed where `--stream auto` has to, which is said.

    Args:
        config: the settings.
        parallel: as `load_model` takes it; a model that is split over processes is in memory.
        dtype: of the weights where no F is taken.
    """
    from tomfisher.studies.auto_stream import decided

    config, why = (config, "") if parallel else decided(config, dtype)
    if why:
        note(why)
    return config


def refuse_own_input(args: argparse.Namespace) -> None:
    """Refuse an output that is what the same command reads, lies in it, or whose clearing would delete it.

    Raises:
        ValueError: naming both.
    """
    from tomfisher.models.builtin import available
    from tomfisher.tasks import formats

    output = os.path.realpath(args.output_path)
    cleared = getattr(args, "overwrite", False) and getattr(args, "output_is_cleared", False)
    for name in INPUTS:
        given = getattr(args, name, None) or ()
        for value in [given] if isinstance(given, str) else given:
            kind = formats.format_of(value) if name == "task" else None
            source = value if kind is None else value.partition(":")[2]
            path = os.path.realpath(os.path.expanduser(source))
            if value in available() or not os.path.exists(path):
                continue  # a name
            if _within(output, path):
                how = "is what" if output == path else "lies in what"
            elif cleared and name != "config" and _within(path, output):
                how = "would be cleared, but holds what"
            else:
                continue
            raise ValueError(
                f"--output_path {args.output_path} {how} --{name} reads ({value}). Give another --output_path."
            )


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """The flag that has several processes share one model."""
    parser.add_argument(
        "--parallel",
        choices=("tensor", "experts"),
        help="under torchrun: split the model itself over the processes, as transformers does: tensor (its matrices), "
        "or experts (the same, and a mixture's experts whole) [each process has the whole model]",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The flag that lets a command replace what is at its --output_path."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --output_path")


def save_then_print(
    path: str | os.PathLike[str] | None, content: Mapping[str, Any], tell: Callable[[], str], **options: Any
) -> None:
    """Write what was found as JSON, then print it.

    Where the file cannot be written, what was found is printed all the same, before the error is raised.

    Args:
        path: the file; None prints alone.
        content: what goes to the file.
        tell: makes what is printed.
        options: of `json.dumps`.
    """
    try:
        if path is not None:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(content, **options) + "\n", encoding="utf-8")
    finally:
        print(tell())
    if path is not None:
        print(f"\nWritten: {os.fspath(path)}")


def print_wrapped(sentences: Iterable[str]) -> None:
    """Print sentences, each a paragraph of at most 110 characters a line."""
    for sentence in sentences:
        print(textwrap.fill(sentence, width=110, subsequent_indent="  ", break_on_hyphens=False))


def report_line(run: str, output: str | os.PathLike[str], folder: str) -> str:
    """The last line of a command whose result the report of a run shows, if it lies in a folder of that name there."""
    if os.path.realpath(output) == os.path.realpath(os.path.join(run, folder)):
        return f"Report:  tomfisher report {run}"
    return f"Report:  tomfisher report {run} shows what lies in {run}/{folder}, where it goes without --output_path"


def _shown(value: Any) -> str:
    return ",".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)
