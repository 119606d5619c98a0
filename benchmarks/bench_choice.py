"""Multiple choice by log-probability: ways to run the questions of a task through a model.

One answer at a time is what a simple script does, and every answer in padded batches what a general harness does.
Ours run distinct rows: whole, behind caches of what they share, or packed side by side in one sequence.
Before anything is timed, every way is compared in float32 with whole sequences in float64; the table has the errors in
the dtype that is timed.
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
from tomfisher.benchmarks import models, plots
from tomfisher.benchmarks.harness import Contender, interleave, matmul_rate, record, summary
from tomfisher.benchmarks.tables import FLOOR, SPEED, TIME, Column, render
from tomfisher.evaluate import ChoiceEvaluator
from tomfisher.evaluate.execute import can_pack, can_share
from tomfisher.fisher import select_parameters
from tomfisher.models import load_model
from tomfisher.models.load import DTYPES, resolve_device
from tomfisher.runtime.batches import pad
from tomfisher.runtime.device import device_of
from tomfisher.runtime.forward import logits_at
from tomfisher.runtime.modes import measuring
from tomfisher.tokens import split_continuation

ALONE, PADDED = "one answer at a time", "every answer, padded batches"
DISTINCT, STEPPED, SIDE_BY_SIDE = "distinct rows", "shared, by steps", "shared, packed"
COLUMNS = (*TIME, SPEED, FLOOR, Column("error", "error", ".1e"))
CHECKED = 16  # questions
TOLERANCE = 1e-3  # nats, in float32

Scores = list[list[float]]
Span = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, and of one of its answers
Ways = dict[str, Callable[[Any], Scores]]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check, time and return the record."""
    device = resolve_device(args.device)
    loaded = load_model(args.model, dtype=args.dtype, device=str(device))
    task = args.task or models.task_of(args.model)
    stories = tasks.load(task, n=args.questions, split="evaluation")
    model, tokenizer = loaded.model, loaded.tokenizer
    errors = check(model, tokenizer, stories[:CHECKED], args.batch_size)
    ways, absent = contenders(model, tokenizer, stories, args.batch_size)
    timed = {name: Contender(partial(way, model)) for name, way in ways.items()}
    timings = interleave(timed, args.rounds, device, desc="Choice")
    floor = flop(model, spans_of(tokenizer, stories)) / matmul_rate(DTYPES[args.dtype], device)
    rows = summary(timings, PADDED, floor)
    for name, row in rows.items():
        row["error"] = errors[name]
    case = {
        "name": f"{args.model}, {len(stories)} questions of {task}, {args.dtype} on {device}",
        "baseline": PADDED,
        "floor_s": floor,
        "contenders": rows,
        "absent": absent,
        "notes": [f"error: largest difference from float64 of a log-probability of {CHECKED} questions, in nats"],
    }  # fmt: skip
    settings = {key: getattr(args, key) for key in ("model", "dtype", "questions", "batch_size", "rounds")}
    return record("choice", {**settings, "task": task}, {"cases": [case]}, device)


def report(result: dict[str, Any]) -> str:
    """The record as a table."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Times as multiples of the floor."""
    plots.bars(result["results"]["cases"], path, "times_floor.median", "x floor", "Multiple choice", line=1.0)


def contenders(
    model: Any, tokenizer: Any, stories: Sequence[Any], batch_size: int
) -> tuple[Ways, dict[str, str]]:
    """Every way by name, and the ways that this model does not take with the reason.

    A way is a function of the model that gives the log-probabilities of all answers, story by story. Texts are
    encoded before, for all alike.
    """
    spans = spans_of(tokenizer, stories)
    counts = [len(story.choices) for story in stories]
    packed, plain = (ChoiceEvaluator(tokenizer, stories, batch_size, pack=pack) for pack in (True, False))
    ways: Ways = {
        ALONE: partial(every_answer, spans=spans, counts=counts, batch_size=1),
        PADDED: partial(every_answer, spans=spans, counts=counts, batch_size=batch_size),
        DISTINCT: partial(_ours, evaluator=plain, share=False),
        STEPPED: partial(_ours, evaluator=plain, share=True),
        SIDE_BY_SIDE: partial(_ours, evaluator=packed, share=True),
    }
    able = {STEPPED: can_share(model), SIDE_BY_SIDE: can_pack(model)}
    absent = {name: f"{type(model).__name__} cannot be run this way" for name, can in able.items() if not can}
    return {name: way for name, way in ways.items() if name not in absent}, absent


def spans_of(tokenizer: Any, stories: Sequence[Any]) -> list[Span]:
    """Ids of every prompt with every answer, story by story."""
    return [
        split_continuation(tokenizer, story.prompt, " " + choice)
        for story in stories
        for choice in story.choices
    ]


def every_answer(model: Any, spans: Sequence[Span], counts: Sequence[int], batch_size: int) -> Scores:
    """Each prompt with each of its answers as a row of its own, of similar length together, padded on the right."""
    scores = [0.0] * len(spans)
    order = sorted(range(len(spans)), key=lambda n: -len(spans[n][0]) - len(spans[n][1]))
    with measuring(model):
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            for n, value in zip(chunk, _padded(model, [spans[n] for n in chunk]), strict=True):
                scores[n] = value
    numbers = iter(scores)
    return [[next(numbers) for _ in range(count)] for count in counts]


def _padded(model: Any, spans: Sequence[Span]) -> list[float]:
    """Log-probabilities of the answers of one batch, in float32 or, from a float64 model, in float64."""
    ids = pad([[*prompt, *answer] for prompt, answer in spans], device_of(model))
    # the same positions for all rows, as transformers has it
    first = min(len(prompt) for prompt, _ in spans) - 1
    logits = logits_at(model, ids, torch.arange(first, ids.shape[1], device=ids.device))
    wide = torch.promote_types(logits.dtype, torch.float32)
    sums = []
    for (prompt, answer), scores in zip(spans, logits, strict=True):
        begin = len(prompt) - 1 - first
        logprobs = scores[begin : begin + len(answer)].to(wide).log_softmax(-1)
        sums.append(logprobs.gather(1, ids.new_tensor(answer)[:, None]).sum())
    numbers: list[float] = torch.stack(sums).tolist()
    return numbers


def check(model: Any, tokenizer: Any, stories: Sequence[Any], batch_size: int) -> dict[str, float]:
    """Largest difference of each way from whole sequences in float64, in the model's dtype.

    Args:
        model: on which all run.
        tokenizer: its tokenizer.
        stories: a few.
        batch_size: rows of a forward.

    Returns:
        Name to nats.

    Raises:
        RuntimeError: a difference above `TOLERANCE` in float32.
    """
    ways, _ = contenders(model, tokenizer, stories, batch_size)
    exact = ways[ALONE](copy.deepcopy(model).double())
    single = copy.deepcopy(model).float()
    for name, way in ways.items():
        if not (error := _largest_gap(way(single), exact)) <= TOLERANCE:
            raise RuntimeError(
                f"{name} is wrong: a log-probability differs from float64 by {error:.1e} nats; allowed is "
                f"{TOLERANCE:g}."
            )
    return {name: _largest_gap(way(model), exact) for name, way in ways.items()}


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


def _largest_gap(scores: Scores, exact: Scores) -> float:
    return max(abs(a - b) for x, y in zip(scores, exact, strict=True) for a, b in zip(x, y, strict=True))


def _ours(model: Any, evaluator: ChoiceEvaluator, share: bool) -> Scores:
    scores = evaluator.score(model, share_prefix=share, progress=False)
    return [list(record.logprobs or ()) for record in scores.records]
