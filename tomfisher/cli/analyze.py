"""`tomfisher analyze`: what happens inside a model, with or without a mask."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tomfisher.cli.common import (
    MODEL_FIELDS,
    add_command,
    add_overwrite,
    add_settings,
    given_settings,
    load_named_model,
    note,
    refuse_existing,
    setting,
)

TITLES = {
    "rope": "RoPE spectrum: share of the rotated energy in slow, middle and fast pairs, mean over heads",
    "sinks": "Attention to the first token, mean over heads (angles in degrees, entropies in nats)",
}
LARGEST = 5


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "analyze",
        "RoPE frequencies and attention sinks of a model, before and after a mask",
        "Run prompts through a model and print, per layer, which rotary frequencies its queries and keys live in\n"
        "and how much attention the first token gets. With --mask, once more with the masked weights overwritten,\n"
        "and what changed. A part that a model cannot have (RoPE of MPT, sinks of Mamba) is said, the rest is done.",
        (
            "tomfisher analyze --model smollm2-135m --task false-belief --limit 64",
            "tomfisher analyze --model testbed-llama --task testbed \\\n"
            "      --mask runs/demo-testbed/masks/task-control-0.003.safetensors --output_path inside.json",
            "tomfisher analyze --model ./my-model --texts prompts.txt --parts sinks --maps 0.3,5.1 \\\n"
            "      --output_path sinks.json",
        ),
    )
    add_settings(parser, *MODEL_FIELDS, "task", required=("model",))
    parser.add_argument(
        "--texts",
        help="instead of a task: a text file (one prompt per line), JSON/JSONL or a built-in corpus",
    )
    parser.add_argument("--limit", type=int, default=64, help="prompts [64]")
    parser.add_argument(
        "--max_length", type=int, help="cut prompts to this many tokens [the model's context]"
    )
    parser.add_argument("--parts", default="rope,sinks", help="what to look at: rope, sinks [rope,sinks]")
    parser.add_argument(
        "--maps", default="", help="LAYER.HEAD,...: write these heads' whole attention maps, first prompt"
    )
    parser.add_argument("--mask", help="mask file (tomfisher mask): analyse the perturbed model too")
    add_settings(parser, "fill", "compat", "seed")
    parser.add_argument("--dtype", default="auto", help="fp32, bf16, fp16 [bf16 on CUDA, else fp32]")
    parser.add_argument("--output_path", help="write everything, per layer and head, to this JSON file")
    add_overwrite(parser)
    parser.set_defaults(execute=run)


def run(args: argparse.Namespace) -> int:
    """Analyse, print the tables, write the JSON."""
    from tomfisher.analysis.analyze import analyze, check_request
    from tomfisher.analysis.change import compare
    from tomfisher.files import atomic_path

    if args.output_path:
        refuse_existing(args.output_path, args.overwrite)
    parts, heads = _words(args.parts), _heads(args.maps)
    check_request(parts, heads)
    if heads and not args.output_path:
        raise ValueError("--maps are written to the JSON file. Give its --output_path.")
    texts = _texts(args)
    loaded = load_named_model(args, args.dtype)
    prompts = _prompts(args, loaded, texts)
    perturbation = _perturbation(args, loaded) if args.mask else None
    states = {"baseline": analyze(loaded.model, prompts, parts, heads)}
    if perturbation is not None:
        with perturbation:
            states["masked"] = analyze(loaded.model, prompts, parts, heads)
    base, masked = states["baseline"], states.get("masked")
    changes = {part: compare(result, masked.results[part]) for part, result in base.results.items() if masked}
    print(_report(base, changes, parts))
    if args.output_path:
        report = {"model": loaded.identity, "mask": args.mask} | {k: a.to_dict() for k, a in states.items()}
        report |= {"change": {part: change.to_dict() for part, change in changes.items()}} if masked else {}
        with atomic_path(Path(args.output_path)) as temporary:
            temporary.write_text(json.dumps(report, allow_nan=False) + "\n", encoding="utf-8")
        print(f"\nWritten: {args.output_path}")
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    """The prompts in words: those of the task, or the first of a file of texts."""
    from tomfisher.experiment.config import Config
    from tomfisher.experiment.inputs import Inputs
    from tomfisher.tasks import corpus
    from tomfisher.tasks.records import JSON_SUFFIXES, read_text_file

    given = given_settings(args)
    if args.limit < 1:
        raise ValueError(f"--limit must be at least 1 prompt, got {args.limit}.")
    if not args.texts:
        given.pop("output_path")
        return [story.prompt for story in Inputs(Config.from_dict(given), whole_file=True).questions]
    if "task" in given:
        raise ValueError("--task and --texts both name prompts. Give one of them.")
    path = Path(args.texts)
    if path.is_file() and path.suffix.lower() not in JSON_SUFFIXES:
        lines = [line for line in read_text_file(path).split("\n") if line.strip()]
        return lines[: args.limit]
    return corpus.load(args.texts).documents[: args.limit]


def _prompts(args: argparse.Namespace, loaded: Any, texts: Sequence[str]) -> list[Any]:
    from tomfisher.models.structure import position_limit
    from tomfisher.tasks.encode import encode

    length = args.max_length or position_limit(loaded.model)
    return [s.input_ids for s in encode(loaded.tokenizer, texts, supervise="all", max_length=length)]


def _perturbation(args: argparse.Namespace, loaded: Any) -> Any:
    from tomfisher.experiment.config import parse_fill
    from tomfisher.experiment.stores import check_belongs
    from tomfisher.masks import SparseMask
    from tomfisher.perturbation import perturb

    mask = SparseMask.load(args.mask)
    check_belongs(mask.shapes, loaded.model, f"The mask {args.mask}")
    fill = parse_fill(setting(args, "fill"))
    return perturb(loaded.model, mask, fill=fill, seed=setting(args, "seed"), compat=setting(args, "compat"))


def _report(base: Any, changes: dict[str, Any], parts: Iterable[str]) -> str:
    """Every part's table, and with a mask the table of what changed and the largest changes."""
    blocks = []
    for part in parts:
        if part in base.unavailable:
            note(f"no {part}: {base.unavailable[part]}")
            continue
        found = base.results[part]
        blocks.append(f"{TITLES[part]}\n{_table(found.summary())}")
        if part == "rope":
            blocks[-1] += (
                f"\n{found.prompts} prompts, {found.tokens} tokens; bands relative to {found.context} tokens"
            )
        elif found.long_prompts < found.prompts:
            note(
                f"{found.prompts - found.long_prompts} of {found.prompts} prompts are shorter than {found.window} "
                "tokens; the sink rate leaves them out"
            )
        if part in changes:
            kind = "relative change of norms" if part == "rope" else "masked minus baseline"
            largest = [row._asdict() for row in changes[part].largest(LARGEST)]
            blocks.append(f"{part}, {kind}\n{_table(changes[part].summary())}")
            blocks.append(f"{part}, largest changes\n{_table(largest)}")
    return "\n\n".join(blocks)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    from tomfisher.experiment.table import align

    return align([name.replace("_", " ") for name in rows[0]], [list(map(_cell, r.values())) for r in rows])


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4g}"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _heads(text: str) -> list[tuple[int, int]]:
    try:
        return [(int(layer), int(head)) for layer, _, head in (w.partition(".") for w in _words(text))]
    except ValueError:
        raise ValueError(f"--maps takes LAYER.HEAD,... such as 0.3,5.1, got {text!r}.") from None
