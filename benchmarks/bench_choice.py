"""Multiple choice by log-probability: ways to run the questions of a task through a model.

One answer at a time is what a simple script does, and every answer in padded batches what a general harness does.
Ours run distinct rows: whole, behind caches of what they share, or packed side by side in one sequence.
Before anything is timed, every way is compared with whole sequences in float64.
Floor: the distinct tokens of all rows through the matrices, and the output matrix at the positions that are read, at
the best rate that a large matrix product was measured to run at.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tomfisher import tasks
from tomfisher.benchmarks import plots
from tomfisher.benchmarks.harness import Contender, interleave, matmul_rate, record, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.evaluate import ChoiceEvaluator
from tomfisher.fisher import select_parameters
from tomfisher.models import load_model
from tomfisher.models.load import DTYPES, resolve_device
from tomfisher.models.onednn import by_onednn
from tomfisher.tokens import split_continuation

ALONE, PADDED = "one answer at a time", "every answer, padded batches"
WHOLE, STEPS, PACKED = "distinct rows", "shared, by steps", "shared, packed"
OWN_TASKS = ("testbed", "testbed2")
COLUMNS = (*TIME, SPEED, FLOOR, Column("error", "error", ".1e"))
TOLERANCE = {"fp32": 1e-3, "bf16": 1.0, "fp16": 0.1}  # nats
CHECKED = 16  # questions

Scores = list[list[float]]
Span = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, and of one of its answers


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, time and return the record."""
    device = resolve_device(args.device)
    loaded = load_model(args.model, dtype=args.dtype, device=str(device))
    task = args.task or (family if (family := args.model.partition("-")[0]) in OWN_TASKS else "false-belief")
    stories = tasks.load(task, n=args.questions, split="evaluation")
    model, tokenizer = loaded.model, loaded.tokenizer
    errors = check(model, tokenizer, stories[:CHECKED], args.batch_size, TOLERANCE[args.dtype])
    ways = contenders(tokenizer, stories, args.batch_size)
    timings = interleave(
        {name: Contender(partial(way, model)) for name, way in ways.items()},
        args.rounds,
        device,
        desc="Choice",
    )
    floor = flop(model, spans_of(tokenizer, stories)) / matmul_rate(DTYPES[args.dtype], device)
    rows = summary(timings, PADDED, floor)
    for name, row in rows.items():
        row["error"] = errors[name]
    case = {
        "name": f"{args.model}, {len(stories)} questions of {task}, {args.dtype} on {device}",
        "baseline": PADDED,
        "floor_s": floor,
        "contenders": rows,
        "absent": timings.absent,
        "notes": [
            f"error: largest difference from float64 of a log-probability of {CHECKED} questions, in nats"
        ],
    }
    settings = {key: getattr(args, key) for key in ("model", "dtype", "questions", "batch_size", "rounds")}
    return record("choice", {**settings, "task": task}, {"cases": [case]}, device)


def report(result: dict[str, Any]) -> str:
    """The record as a table."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Times as multiples of the floor."""
    plots.bars(result["results"]["cases"], path, "times_floor.median", "x floor", "Multiple choice", line=1.0)


def contenders(tokenizer: Any, stories: Sequence[Any], batch_size: int) -> dict[str, Callable[[Any], Scores]]:
    """Every way by name: a function of the model that gives the log-probabilities of all answers, story by story.

    Texts are encoded before, for all alike.
    """
    spans = spans_of(tokenizer, stories)
    counts = [len(story.choices) for story in stories]
    packed, plain = (ChoiceEvaluator(tokenizer, stories, batch_size, pack=pack) for pack in (True, False))
    return {
        ALONE: partial(every_answer, spans=spans, counts=counts, batch_size=1),
        PADDED: partial(every_answer, spans=spans, counts=counts, batch_size=batch_size),
        WHOLE: partial(_ours, evaluator=plain, share=False),
        STEPS: partial(_ours, evaluator=plain, share=True),
        PACKED: partial(_ours, evaluator=packed, share=True),
    }


def spans_of(tokenizer: Any, stories: Sequence[Any]) -> list[Span]:
    """Ids of every prompt with every answer, story by story."""
    return [
        split_continuation(tokenizer, story.prompt, " " + choice)
        for story in stories
        for choice in story.choices
    ]


def every_answer(model: Any, spans: Sequence[Span], counts: Sequence[int], batch_size: int) -> Scores:
    """Each prompt with each of its answers as a row of its own, of similar length together, padded on the right."""
    device = model.device
    found = [0.0] * len(spans)
    order = sorted(range(len(spans)), key=lambda n: -len(spans[n][0]) - len(spans[n][1]))
    with torch.inference_mode(), by_onednn(model):
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            rows = [[*spans[n][0], *spans[n][1]] for n in chunk]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
            # the same positions for all rows, as logits_to_keep has it
            first = min(len(spans[n][0]) for n in chunk) - 1
            keep = torch.arange(first, longest, device=device)
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
            for row, n, scores in zip(rows, chunk, logits, strict=True):
                begin, end = len(spans[n][0]), len(row)
                logprobs = scores[begin - 1 - first : end - 1 - first].float().log_softmax(-1)
                found[n] = float(logprobs.gather(1, ids.new_tensor(row[begin:])[:, None]).sum())
    numbers = iter(found)
    return [[next(numbers) for _ in range(count)] for count in counts]


def check(
    model: Any, tokenizer: Any, stories: Sequence[Any], batch_size: int, tolerance: float
) -> dict[str, float]:
    """Largest difference of each way from whole sequences in float64.

    Args:
        model: on which all run.
        tokenizer: its tokenizer.
        stories: a few.
        batch_size: rows of a forward.
        tolerance: of every difference, in nats.

    Returns:
        Name to nats.

    Raises:
        RuntimeError: a difference above the tolerance.
    """
    ways = contenders(tokenizer, stories, batch_size)
    exact = ways[ALONE](copy.deepcopy(model).double())
    errors = {}
    for name, way in ways.items():
        gaps = [abs(a - b) for x, y in zip(way(model), exact, strict=True) for a, b in zip(x, y, strict=True)]
        errors[name] = max(gaps)
        if not errors[name] <= tolerance:
            raise RuntimeError(
                f"{name} is wrong: a log-probability differs from float64 by {errors[name]:.1e} nats; allowed is "
                f"{tolerance:g}."
            )
    return errors


def flop(model: Any, spans: Sequence[Span]) -> float:
    """FLOP of the decoder's matrices for every distinct beginning once, and of the head where answers are read."""
    inputs = {
        (*prompt, *answer[:-1])[:end]
        for prompt, answer in spans
        for end in range(1, len(prompt) + len(answer))
    }
    read = {(*prompt, *answer[:t]) for prompt, answer in spans for t in range(len(answer))}
    weights = sum(p.numel() for p in select_parameters(model, "decoder-linear").values())
    return 2.0 * (len(inputs) * weights + len(read) * model.get_output_embeddings().weight.numel())


def _ours(model: Any, evaluator: ChoiceEvaluator, share: bool) -> Scores:
    scores = evaluator.score(model, share_prefix=share, progress=False)
    return [list(record.logprobs or ()) for record in scores.records]
