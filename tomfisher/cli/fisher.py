"""`tomfisher fisher`: from a model and texts to a Fisher store."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from tomfisher.cli.common import (
    MODEL_FIELDS,
    WORDING_FIELDS,
    add_command,
    add_overwrite,
    add_parallel,
    add_settings,
    given_settings,
    refuse_idle,
    setting,
    streamed_if_too_large,
    wording,
)
from tomfisher.cli.several import TORCHRUN, is_one_of_several
from tomfisher.files import refuse_existing
from tomfisher.progress import note

if TYPE_CHECKING:
    from tomfisher.models import LoadedModel
    from tomfisher.sample import Sample
    from tomfisher.studies.config import Config

DATA = (
    *("task", "n_task", "control", "n_control", "control_length", "max_length", "supervise", "seed"),
    *WORDING_FIELDS,
)
RUN = (
    "labels",
    "reduction",
    "params",
    "tokens_per_batch",
    "fisher_dtype",
    "stream",
    "max_memory",
    "boundary",
)

OF_RUN = (*MODEL_FIELDS, *RUN, "n_task", "n_control", "control_length")  # on which depends whether it fits

HELPS = {
    "task": "built-in task (tomfisher ls tasks) or a JSON/JSONL file; exactly one of --task, --control and --texts",
    "control": "general text: built-in corpus, .txt, JSON/JSONL or datasets id (name:config:split)",
    "n_task": "samples of --task [100]",
    "n_control": "samples of --control [100]",
    "control_length": "tokens per sample of --control [128]",
    "max_length": "cut samples of --task or --texts to this many tokens [the model's context]",
    "chat_template": "put every prompt, or text of --texts, as the user's turn of the tokenizer's chat template",
    "supervise": "supervised tokens of a sample [answer; of --texts: all]",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = add_command(
        subparsers,
        "fisher",
        "exact Fisher diagonal of a model on a task, a corpus or your texts",
        "Sum the squared per-sample gradients of the chosen parameters and write them as a Fisher store:\n"
        "safetensors shards under the model's own parameter names, plus fisher.json.",
        (
            "tomfisher fisher --model smollm2-135m --task false-belief --output_path stores/task",
            "tomfisher fisher --model smollm2-135m --control python-reference --output_path stores/control",
            "tomfisher fisher --model ./my-model --texts prompts.jsonl --supervise last --output_path stores/mine",
            "tomfisher fisher --model smollm2-135m --task false-belief --chat_template --output_path stores/chat",
            "tomfisher fisher --model ./larger-than-memory --task false-belief --stream --output_path stores/task",
            "tomfisher fisher --model testbed-llama --task testbed --labels sampled --params all --output_path s",
            "torchrun --nproc_per_node 2 -m tomfisher fisher --model smollm2-135m --task false-belief --output_path s",
            "torchrun --nproc_per_node 2 -m tomfisher fisher --shard --model ./big --texts t.txt --output_path s",
            "torchrun --nproc_per_node 2 -m tomfisher fisher --parallel tensor --model m --texts t.txt --output_path s",
        ),
    )
    add_data(parser)
    add_settings(parser, *RUN)
    parser.add_argument(
        "--impl", default="auto", help="ops: auto, triton, triton-hopper, cpp or reference [auto]"
    )
    parser.add_argument(
        "--precision",
        choices=("ieee", "tf32x3", "tf32"),
        default="ieee",
        help="precision of float32 products in the Triton kernels [ieee]",
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun, on the CPU: spread the rows of weights and F over the processes (FSDP2)",
    )
    parser.add_argument("--output_path", required=True, help="folder of the store to write")
    add_parallel(parser)
    add_overwrite(parser)
    parser.set_defaults(execute=run, output_is_replaced=True, several=True)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Flags that name the model and the samples."""
    add_settings(parser, *MODEL_FIELDS, *DATA, required=("model",), helps=HELPS)
    parser.add_argument(
        "--texts", metavar="FILE", help="a .txt or JSON/JSONL of texts, instead of a task or control"
    )


def run(args: argparse.Namespace) -> int:
    """Compute and write the store."""
    from tomfisher.fisher import fisher_diagonal
    from tomfisher.fisher.diagonal import save_by_ranks
    from tomfisher.fisher.store import check_target
    from tomfisher.runtime import ranks
    from tomfisher.studies.config import Config
    from tomfisher.studies.named_model import named_model
    from tomfisher.studies.parsing import parse_params

    refuse_existing(args.output_path, args.overwrite)
    check_target(args.output_path)
    settings = {name: value for name, value in given_settings(args).items() if name in OF_RUN}
    config = Config(**settings)
    refuse_idle(config, settings, args.shard)
    if args.shard:
        _check_sharded(config, args.parallel)
    else:
        config = streamed_if_too_large(config, args.parallel)
    loaded = named_model(config, setting(args, "fisher_dtype"), config.device, args.parallel, args.shard)
    samples = samples_of(args, loaded)
    fisher = fisher_diagonal(
        loaded.subject,
        samples,
        params=parse_params(setting(args, "params")),
        labels=setting(args, "labels"),
        reduction=setting(args, "reduction"),
        tokens_per_batch=setting(args, "tokens_per_batch"),
        impl=args.impl,
        precision=args.precision,
        seed=setting(args, "seed"),
        boundary=config.boundary,
        out=args.output_path if config.is_streamed or args.shard else None,
    )
    if not (config.is_streamed or args.shard):
        fisher.metadata.update(model=loaded.identity)
        save_by_ranks(fisher, args.output_path, ranks.current())
    slow = sum(method != "captured" for method in fisher.methods.values())
    if slow:
        note(
            f"{slow} of {len(fisher)} parameters took the one-sample fallback; `tomfisher plan` says which and why."
        )
    print(
        f"{args.output_path}: {len(fisher)} tensors, {sum(map(math.prod, fisher.shapes.values())):,} weights, "
        f"{fisher.num_samples} samples, {fisher.num_tokens:,} tokens ({_said(fisher.implementations)})"
    )
    return 0


def _check_sharded(config: Config, parallel: str | None) -> None:
    """Refuse what does not go with --shard."""
    if not is_one_of_several():
        raise ValueError(
            f"--shard spreads a model over processes, and this is one alone. Start several: {TORCHRUN} ..."
        )
    if config.is_streamed or parallel is not None:
        other = "--stream" if config.is_streamed else "--parallel"
        raise ValueError(
            f"--shard and {other} are two ways to run a model that one process cannot hold. Give one."
        )
    if config.device not in (None, "cpu"):
        raise ValueError(f"--shard works on the CPU, got --device {config.device}. Leave one of the two out.")


def samples_of(args: argparse.Namespace, loaded: LoadedModel) -> list[Sample]:
    """The samples that exactly one of --task, --control and --texts names."""
    from tomfisher.studies.config import Config
    from tomfisher.studies.inputs import Inputs
    from tomfisher.tasks.encode import encode
    from tomfisher.tasks.formats import read_texts

    given = [name for name in ("task", "control", "texts") if getattr(args, name, None) is not None]
    if len(given) != 1:
        named = " and ".join(f"--{name}" for name in given) or "none of them"
        raise ValueError(f"Name the samples by exactly one of --task, --control and --texts, got {named}.")
    if args.texts is not None:
        supervise = getattr(args, "supervise", "all")
        texts, length = read_texts(args.texts), setting(args, "max_length")
        return encode(loaded.tokenizer, texts, supervise, length, **wording(args))
    settings = {name: value for name, value in given_settings(args).items() if name in (*DATA, "model")}
    return Inputs(Config(**settings)).samples(given[0], loaded)


def _said(implementations: dict[str, str]) -> str:
    return ", ".join(f"{op}: {name}" for op, name in implementations.items())
