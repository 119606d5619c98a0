"""`tomfisher analyze`: what happens inside a model, with or without a mask, and where masks lie."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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

TITLES = {
    "rope": "RoPE spectrum: share of the rotated energy in slow, middle and fast pairs, mean over heads",
    "sinks": "Attention to the first token, mean over heads (angles in degrees, entropies in nats)",
}
PROFILE_TITLES = {
    "groups": "Mask profile: share of the masked weights and share of all weights of the mask's tensors",
    "kinds": "Mask profile by weight",
    "layers": "Mask profile by layer",
    "frequencies": "Mask profile: rows of W_Q and W_K by rotary frequency, and as expected by chance",
    "sparsity": "Mask profile: distinct rows and columns, effective rank of the change; means over matrices",
}
HEAD_COLUMNS = ("layer", "part", "head", "pairs", "masked", "found", "expected", "fold", "p_corrected")
OVERLAP_TITLE = "Overlap of masks, compared with random masks of the same counts"
PROFILE = "profile"
PROMPT_FIELDS = ("bos", "chat_template", "system_prompt")
LARGEST = 5


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "analyze",
        "RoPE frequencies, attention sinks and the shape of a mask, before and after it",
        "Run prompts through a model and print, per layer, which rotary frequencies its queries and keys use\n"
        "and how much attention the first token gets. With --mask, again with the masked weights overwritten:\n"
        "what changed, and where the mask lies: layers, modules, heads, frequencies, rank. A part that a model cannot\n"
        "have (RoPE of MPT, sinks of Mamba) is named and skipped. --compare_masks needs no model.",
        (
            "tomfisher analyze --model smollm2-135m --task false-belief --limit 64",
            "tomfisher analyze --model testbed-llama --task testbed \\\n"
            "      --mask runs/demo-testbed/masks/task-control-0.003.safetensors --output_path inside.json",
            "tomfisher analyze --model ./my-model --texts prompts.txt --parts sinks --maps 0.3,5.1 \\\n"
            "      --output_path sinks.json",
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
        "--parts", help="what to measure: rope, sinks, profile [rope,sinks, with --mask also profile]"
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
        report["overlap"], block = _compare_masks(args.compare_masks)
        blocks.append(block)
    elif not hasattr(args, "model"):
        raise ValueError("analyze takes a model or masks: give --model, or --compare_masks FILE FILE.")
    if hasattr(args, "model"):
        measured, tables = _analyze(args)
        report |= measured
        blocks += tables
    save_then_print(args.output_path, report, partial("\n\n".join, blocks), allow_nan=False)
    return 0


def _analyze(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What goes to the file, and the tables of the model, and of the mask if there is one."""
    from tomfisher.analysis.analyze import analyze
    from tomfisher.analysis.change import compare
    from tomfisher.masks import SparseMask
    from tomfisher.runtime.rules import remembered
    from tomfisher.runtime.scan import scan_of

    parts, heads = _parts(args), _heads(args.maps)
    texts = _texts(args)
    mask = SparseMask.load(args.mask) if args.mask else None
    loaded = load_named_model(args, args.dtype)
    prompts = _prompts(args, loaded, texts)
    perturbation = None if mask is None else perturbation_of(args, loaded, mask)
    measured = [part for part in parts if part != PROFILE]
    needed = dict.fromkeys([*measured, "rope"] if PROFILE in parts else measured)
    with remembered():
        states = {"baseline": analyze(loaded.model, prompts, list(needed), heads)}
        if perturbation is not None and measured:
            with perturbation:
                states["masked"] = analyze(loaded.model, prompts, measured, heads)
    base, masked = states["baseline"], states.get("masked")
    changes = (
        {part: compare(base.results[part], found) for part, found in masked.results.items()} if masked else {}
    )
    blocks = _report(base, changes, measured)
    report = {"model": loaded.identity, "scan": scan_of(loaded.model), "mask": args.mask}
    report |= {name: state.to_dict() for name, state in states.items()}
    report |= {"change": {part: change.to_dict() for part, change in changes.items()}} if masked else {}
    if PROFILE in parts and perturbation is not None:
        profile = _profile(args, loaded, perturbation.mask, base.results.get("rope"))
        blocks += _profile_blocks(profile)
        report[PROFILE] = profile.to_dict()
    return report, blocks


def _parts(args: argparse.Namespace) -> list[str]:
    """The parts that were asked for, or all that there can be."""
    from tomfisher.analysis.analyze import PARTS, check_request

    known = [*PARTS, PROFILE]
    parts = (known if args.mask else list(PARTS)) if args.parts is None else _words(args.parts)
    if not parts:
        raise ValueError(f"No part to analyse. Parts: {', '.join(known)}.")
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(f"Unknown part {unknown[0]!r}. Parts: {', '.join(known)}.")
    if PROFILE in parts and not args.mask:
        raise ValueError("The part profile says where a mask lies. Give its file: --mask FILE.")
    heads = _heads(args.maps)
    check_request([part for part in parts if part != PROFILE] or ["rope"], heads)
    if heads and not args.output_path:
        raise ValueError("--maps are written to the JSON file. Give its --output_path.")
    return parts


def _compare_masks(files: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What the masks share, as rows and as a table."""
    from tomfisher.analysis.overlap import overlap
    from tomfisher.masks import SparseMask

    if len(set(files)) < max(2, len(files)):
        raise ValueError(f"--compare_masks takes two or more different mask files, got {', '.join(files)}.")
    stems = [Path(file).stem for file in files]
    names = files if len(set(stems)) < len(stems) else stems
    shared = overlap({name: SparseMask.load(file) for name, file in zip(names, files, strict=True)})
    return shared.to_dict(), f"{OVERLAP_TITLE}\n{_table(shared.summary(), left=(0, 1))}"


def _profile(args: argparse.Namespace, loaded: Any, mask: Any, spectrum: Any) -> Any:
    from tomfisher.analysis.profile import mask_profile
    from tomfisher.studies.config import parse_fill

    fill, compat = parse_fill(setting(args, "fill")), setting(args, "compat")
    return mask_profile(mask, loaded.model, spectrum, fill=fill, seed=setting(args, "seed"), compat=compat)


def _profile_blocks(profile: Any) -> list[str]:
    for part, reason in profile.unavailable.items():
        note(f"no {part}: {reason}")
    blocks = [f"{PROFILE_TITLES[title]}\n{_table(rows)}" for title, rows in profile.summary().items() if rows]
    if profile.enrichment is not None:
        strongest = [test.to_dict() for test in profile.enrichment.strongest(LARGEST)]
        rows = [{name: row[name] for name in HEAD_COLUMNS} for row in strongest]
        title = "Mask profile, heads whose dominant rows stand out most among places (not among whole pairs)"
        blocks.append(f"{title}\n{_table(rows)}")
    return blocks


def _texts(args: argparse.Namespace) -> list[str]:
    """The prompts in words: those of the task, or the first of a file of texts."""
    from tomfisher.studies.config import Config
    from tomfisher.studies.inputs import Inputs
    from tomfisher.tasks import corpus
    from tomfisher.tasks.records import JSON_SUFFIXES, read_text_file

    given = given_settings(args)
    if args.limit < 1:
        raise ValueError(f"--limit must be at least 1 prompt, got {args.limit}.")
    if not args.texts:
        given.pop("output_path")
        note_own_texts(str(given.get("model", "")), given, ("task",))
        return [story.prompt for story in Inputs(Config.from_dict(given), whole_file=True).questions]
    if "task" in given:
        raise ValueError("--task and --texts both name prompts. Give one of them.")
    path = Path(args.texts)
    if path.is_file() and path.suffix.lower() not in JSON_SUFFIXES:
        lines = [line for line in read_text_file(path).split("\n") if line.strip()]
        return lines[: args.limit]
    return corpus.load(args.texts).documents[: args.limit]


def _prompts(args: argparse.Namespace, loaded: Any, texts: Sequence[str]) -> list[Any]:
    from tomfisher.runtime.positions import position_limit
    from tomfisher.tasks.encode import encode

    length = args.max_length or position_limit(loaded.model)
    samples = encode(loaded.tokenizer, texts, supervise="all", max_length=length, **wording(args))
    return [sample.input_ids for sample in samples]


def _report(base: Any, changes: dict[str, Any], parts: Iterable[str]) -> list[str]:
    """Every part's table, and with a mask the table of what changed and the largest changes."""
    blocks = []
    for part in parts:
        if part in base.unavailable:
            note(f"no {part}: {base.unavailable[part]}")
            continue
        result = base.results[part]
        blocks.append(f"{TITLES[part]}\n{_table(result.summary())}")
        if part == "rope":
            blocks[-1] += (
                f"\n{result.prompts} prompts, {result.tokens} tokens; bands relative to {result.context} tokens"
            )
        elif result.long_prompts < result.prompts:
            note(
                f"{result.prompts - result.long_prompts} of {result.prompts} prompts are shorter than {result.window} "
                "tokens; the sink rate leaves them out"
            )
        if part in changes:
            kind = "relative change of norms" if part == "rope" else "masked minus baseline"
            largest = [row._asdict() for row in changes[part].largest(LARGEST)]
            blocks.append(f"{part}, {kind}\n{_table(changes[part].summary())}")
            blocks.append(f"{part}, largest changes\n{_table(largest)}")
    return blocks


def _table(rows: Sequence[dict[str, Any]], left: Sequence[int] = ()) -> str:
    from tomfisher.results.tables import align

    names = [name.replace("_", " ") for name in rows[0]]
    return align(names, [[_cell(value, name) for name, value in row.items()] for row in rows], left)


def _cell(value: Any, name: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if not isinstance(value, float):
        return str(value)
    if value == 0.0 and (name == "p" or name.startswith("p_")):
        return "< 1e-300"  # too small for a float
    return "-" if math.isnan(value) else f"{value:.4g}"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _heads(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(layer), int(head)) for layer, _, head in (w.partition(".") for w in _words(text))]
    except ValueError:
        raise ValueError(f"--maps takes LAYER.HEAD,... such as 0.3,5.1, got {text!r}.") from None
