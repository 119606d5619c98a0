"""`tomfisher analyze`: what happens inside a model, with or without a mask, and where masks lie."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from tomfisher.cli.common import (
    MODEL_FIELDS,
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    load_named_model,
    note_own_texts,
    perturbation_of,
    save_then_print,
    setting,
    wording,
)
from tomfisher.files import refuse_existing
from tomfisher.progress import note

if TYPE_CHECKING:
    from tomfisher.models import LoadedModel
    from tomfisher.sample import Sample
    from tomfisher.studies.model_analysis import ModelAnalysis
    from tomfisher.tasks.story import Story

PROMPT_FIELDS = ("bos", "chat_template", "system_prompt")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "analyze",
        "RoPE frequencies, attention sinks, the shape of a mask and how its weights act together",
        "Run prompts through a model and print, per layer, which rotary frequencies its queries and keys use\n"
        "and how much attention the first token gets. With --mask, again with the masked weights overwritten:\n"
        "what changed, and where the mask lies: layers, modules, heads, frequencies, rank. A part that a model cannot\n"
        "have (RoPE of MPT, sinks of Mamba) is named and skipped. --parts interaction compares what the Fisher\n"
        "diagonal says about the mask with what its weights do together, and with the measured change of the loss.\n"
        "--compare_masks needs no model.",
        (
            "tomfisher analyze --model smollm2-135m --task false-belief --limit 64",
            "tomfisher analyze --model testbed-llama --task testbed \\\n"
            "      --mask runs/demo-testbed/masks/task-control-0.003.safetensors --output_path inside.json",
            "tomfisher analyze --model ./my-model --texts prompts.txt --parts sinks --maps 0.3,5.1 \\\n"
            "      --output_path sinks.json",
            "tomfisher analyze --model testbed-llama --task testbed --parts interaction \\\n"
            "      --mask runs/demo-testbed/masks/task-control-0.003.safetensors",
            "tomfisher analyze --compare_masks runs/demo-testbed/masks/task-control-0.0*.safetensors",
        ),
    )
    add_settings(parser, *MODEL_FIELDS, "task")
    parser.add_argument(
        "--texts",
        help="instead of a task: a text file (one prompt per line), JSON/JSONL or a built-in corpus",
    )
    parser.add_argument("--limit", type=int, default=64, help="prompts [64]")
    parser.add_argument(
        "--max_length", type=int, help="cut prompts to this many tokens [the model's context]"
    )
    parser.add_argument(
        "--parts",
        help="what to measure: rope, sinks, profile, interaction [rope,sinks, with --mask also profile]",
    )
    parser.add_argument(
        "--maps", default="", help="LAYER.HEAD,...: write these heads' whole attention maps, first prompt"
    )
    parser.add_argument("--mask", help="mask file (tomfisher mask): analyse the perturbed model too")
    parser.add_argument(
        "--compare_masks", nargs="+", default=[], metavar="FILE", help="masks of one model: what they share"
    )
    add_settings(parser, *PROMPT_FIELDS)
    add_settings(parser, "fill", "compat", "seed")
    parser.add_argument("--dtype", default="auto", help="fp32, bf16, fp16 [bf16 on CUDA, else fp32]")
    parser.add_argument("--output_path", help="write everything, per layer and head, to this JSON file")
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_file=True)


def run(args: argparse.Namespace) -> int:
    """Analyse, write the JSON, print the tables."""
    if args.output_path:
        refuse_existing(args.output_path, args.overwrite)
    report: dict[str, Any] = {}
    blocks: list[str] = []
    if args.compare_masks:
        from tomfisher.results.analysis_tables import overlap_table
        from tomfisher.studies.mask_overlap import overlap_of_files

        shared = overlap_of_files(args.compare_masks)
        report["overlap"] = shared.to_dict()
        blocks.append(overlap_table(shared))
    elif not hasattr(args, "model"):
        raise ValueError("analyze takes a model or masks: give --model, or --compare_masks FILE FILE.")
    if hasattr(args, "model"):
        found = _analyze(args)
        report |= found.to_dict()
        blocks += _tables(found)
    save_then_print(args.output_path, report, partial("\n\n".join, blocks), allow_nan=False)
    return 0


def _analyze(args: argparse.Namespace) -> ModelAnalysis:
    """Read prompts, mask and model, and analyse."""
    from tomfisher.masks import SparseMask
    from tomfisher.studies.model_analysis import INTERACTION, analyze_model, chosen_parts
    from tomfisher.studies.parsing import parse_fill
    from tomfisher.studies.prompts import prompt_ids

    heads = _heads(args.maps)
    parts = chosen_parts(None if args.parts is None else _words(args.parts), bool(args.mask), heads)
    if heads and not args.output_path:
        raise ValueError("--maps are written to the JSON file. Give its --output_path.")
    texts = _texts(args)
    mask = SparseMask.load(args.mask) if args.mask else None
    loaded = load_named_model(args, args.dtype)
    return analyze_model(
        loaded,
        prompt_ids(loaded, texts, args.max_length, **wording(args)),
        parts,
        heads,
        None if mask is None else perturbation_of(args, loaded, mask),
        args.mask,
        fill=parse_fill(setting(args, "fill")),
        seed=setting(args, "seed"),
        compat=setting(args, "compat"),
        samples=_samples(args, loaded, texts) if INTERACTION in parts else (),
    )


def _samples(args: argparse.Namespace, loaded: LoadedModel, texts: list[str]) -> list[Sample]:
    """What the loss is of: the task's stories with their answers supervised, or every token of the texts."""
    from tomfisher.tasks.encode import encode

    if args.texts:
        return encode(loaded.tokenizer, texts, "all", args.max_length, **wording(args))
    return encode(loaded.tokenizer, _stories(args), "answer", args.max_length, **wording(args))


def _tables(found: ModelAnalysis) -> list[str]:
    """The tables; what they leave out is said."""
    from tomfisher.results.analysis_tables import analysis_notes, analysis_tables, profile_tables
    from tomfisher.results.interaction import interaction_table
    from tomfisher.studies.model_analysis import INTERACTION

    lines = analysis_notes(found.baseline, found.parts)
    blocks = analysis_tables(found.baseline, found.change, found.parts)
    if found.profile is not None:
        lines += [f"no {part}: {reason}" for part, reason in found.profile.unavailable.items()]
        blocks += profile_tables(found.profile)
    if found.interaction is not None:
        shown = interaction_table(["mask"], [([str(found.mask)], found.to_dict()[INTERACTION])])
        blocks.append(f"{shown.caption}\n{shown.text()}")
    for line in lines:
        note(line)
    return blocks


def _texts(args: argparse.Namespace) -> list[str]:
    """The prompts in words: those of the task, or the first of a file of texts."""
    from tomfisher.studies.prompts import prompt_texts

    given = given_settings(args)
    if args.limit < 1:
        raise ValueError(f"--limit must be at least 1 prompt, got {args.limit}.")
    if not args.texts:
        note_own_texts(str(given.get("model", "")), given, ("task",))
        return [story.prompt for story in _stories(args)]
    if "task" in given:
        raise ValueError("--task and --texts both name prompts. Give one of them.")
    return prompt_texts(args.texts, args.limit)


def _stories(args: argparse.Namespace) -> list[Story]:
    """The stories of the task."""
    from tomfisher.studies.config import Config
    from tomfisher.studies.inputs import Inputs

    given = {name: value for name, value in given_settings(args).items() if name != "output_path"}
    return Inputs(Config.from_dict(given), whole_file=True).questions


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _heads(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(layer), int(head)) for layer, _, head in (w.partition(".") for w in _words(text))]
    except ValueError:
        raise ValueError(f"--maps takes LAYER.HEAD,... such as 0.3,5.1, got {text!r}.") from None
