"""`tomfisher evaluate`: one model, or one masked model, on one task."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from tomfisher import testbed
from tomfisher.cli.common import (
    MODEL_FIELDS,
    PERPLEXITY_FIELDS,
    TASK_FIELDS,
    add_command,
    add_overwrite,
    add_parallel,
    add_settings,
    given_settings,
    perturbation_of,
    refuse_idle,
    save_then_print,
    setting,
    streamed_if_too_large,
)
from tomfisher.files import refuse_existing

if TYPE_CHECKING:
    from tomfisher.masks import SparseMask
    from tomfisher.studies.measure import Measure


CONTROL = "measure the perplexity on this text too: built-in corpus, .txt, JSON/JSONL or datasets id [none]"


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "evaluate",
        "accuracy per condition, and perplexity, of a model with or without a mask",
        "Answer a task's questions and print accuracy with 95 % intervals per condition. With --mask the same\n"
        "questions are answered again with the masked weights overwritten, and the two are compared (exact\n"
        "sign-flip test over clusters, the questions on one story). With --control the perplexity on that text is\n"
        "measured too.",
        (
            "tomfisher evaluate --model smollm2-135m --task false-belief --limit 160",
            "tomfisher evaluate --model testbed-llama --task testbed --control testbed \\\n"
            "      --mask runs/demo-testbed/masks/task-control-0.003.safetensors --output_path evaluation.json",
            "tomfisher evaluate --model ./my-model --task my_task.jsonl --method generate --repetitions 5 \\\n"
            "      --temperature 0.6 --top_p 0.9",
            "tomfisher evaluate --model smollm2-135m --task false-belief --limit 160 --chat_template \\\n"
            "      --system_prompt 'Complete the story with one word.'",
            "tomfisher evaluate --model ./my-model --task my_task.jsonl --gap none --bos yes --normalize byte",
            "torchrun --nproc_per_node 2 -m tomfisher evaluate --model smollm2-135m --task false-belief",
        ),
    )
    names = (*MODEL_FIELDS, *TASK_FIELDS, *PERPLEXITY_FIELDS)
    add_settings(parser, *names, required=("model",), helps={"control": CONTROL})
    add_settings(
        parser, "fill", "compat", "batch_size", "seed", "share_prefix", "stream", "max_memory", "boundary"
    )
    parser.add_argument("--mask", help="mask file (tomfisher mask): measure the perturbed model too")
    parser.add_argument("--dtype", default="auto", help="fp32, bf16, fp16 [bf16 on CUDA, else fp32]")
    parser.add_argument("--output_path", help="write everything, each answer included, to this JSON file")
    add_parallel(parser)
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_file=True, several=True)


def run(args: argparse.Namespace) -> int:
    """Say what is measured, measure, write the JSON, print the table."""
    from tomfisher.masks import SparseMask
    from tomfisher.results.evaluation import evaluation_table
    from tomfisher.runtime import ranks
    from tomfisher.studies.config import Config
    from tomfisher.studies.evaluation import evaluation
    from tomfisher.studies.inputs import Inputs
    from tomfisher.studies.measure import Measure
    from tomfisher.studies.named_model import named_model

    if args.output_path:
        refuse_existing(args.output_path, args.overwrite)
    settings = given_settings(args)
    settings.pop("output_path", None)
    config = Config.from_dict(settings)
    refuse_idle(config, settings)
    config = streamed_if_too_large(config, args.parallel, args.dtype)
    mask = SparseMask.load(args.mask) if args.mask else None
    loaded = named_model(config, args.dtype, config.device, args.parallel)
    perturbation = None if mask is None else _perturbation(args, loaded, mask)
    # a mask may come from the Fisher half of a task file, which it must not be judged on
    inputs = Inputs(config, whole_file=args.mask is None)
    measure = Measure(config, inputs, loaded, progress=True)
    print(f"{_subject(args, config, measure, mask)}\n", flush=True)
    report = evaluation(measure, perturbation, args.mask, with_perplexity=hasattr(args, "control"))
    path = args.output_path if ranks.current().is_first else None
    save_then_print(path, report, partial(evaluation_table, report), indent=1)
    return 0


def _perturbation(args: argparse.Namespace, loaded: Any, mask: SparseMask) -> Any:
    """What --mask, --fill, --compat and --seed name, not applied yet."""
    from tomfisher.perturbation import State
    from tomfisher.studies.parsing import parse_fill
    from tomfisher.studies.stores import check_belongs

    if loaded.opened is None:
        return perturbation_of(args, loaded, mask)
    check_belongs(mask.shapes, loaded.model, f"The mask {args.mask}")
    return State(mask, parse_fill(setting(args, "fill")), setting(args, "seed"), setting(args, "compat"))


def _subject(args: argparse.Namespace, config: Any, measure: Measure, mask: SparseMask | None) -> str:
    """What is about to be measured, in one line."""
    default = "the model's own task" if testbed.texts_of(config.model) else "the default task"
    task = config.task if hasattr(args, "task") else f"{config.task} ({default})"
    line = f"{config.model} on {task}, {len(measure.inputs.questions)} questions"
    if mask is None:
        return line
    return f"{line}; with the mask {args.mask}, {mask.nnz:,} weights, fill {config.fill}"
