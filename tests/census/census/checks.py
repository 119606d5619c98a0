"""One row of the census: what holds of one architecture, each thing compared with its definition in `truth`."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tomfisher
from census import configs, inputs, truth
from tomfisher.analysis import attention_sinks, rope_spectrum
from tomfisher.evaluate import perplexity, score
from tomfisher.fisher.selection import select_parameters
from tomfisher.models.families import describe

Row = dict[str, Any]
PACKAGE = Path(tomfisher.__file__).parent
FISHER_TOLERANCE, FISHER_NOISE = 1e-5, 1e-7  # of the tensor's and of the model's largest entry
NATS = 1e-3  # a log-probability in float32, of models whose logits reach tens
ATTENTION = 1e-4
# how multiple choice was run, from the records' words to the table's
WAYS = {
    "packed": "packed",
    "steps": "shared",
    "padded batches": "padded",
    "batches of equal lengths": "equal lengths",
    "single rows": "single",
}
STEPS = 4  # tokens of a completion: those of the longest answer, and one behind it


def census_row(model_type: str) -> Row:
    """Everything about one architecture, as JSON-ready values."""
    row: Row = {"type": model_type, "class": configs.class_name(model_type)}
    try:
        model = inputs.small_model(model_type)
    except inputs.NotBuilt as error:
        return row | {"built": False, "reason": str(error)}
    warnings.simplefilter(
        "ignore"
    )  # too short texts, tensors without a reached weight: small models have them
    return row | {
        "built": True,
        "parameters": sum(p.numel() for p in model.parameters()),
        "checks": {name: _attempt(check, model) for name, check in CHECKS.items()},
    }


def _attempt(check: Callable[[nn.Module], Row], model: nn.Module) -> Row:
    """What a check finds; "refused" with the sentence where tomfisher itself refuses, else "crashed"."""
    try:
        return check(model)
    except Exception as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = isinstance(error, (ValueError, NotImplementedError)) and last.is_relative_to(PACKAGE)
        text = " ".join(str(error).split())
        if ours:
            return {"verdict": "refused", "reason": text}
        return {"verdict": "crashed", "reason": f"{type(error).__name__} in {last.name}: {text[:200]}"}


def _selection(model: nn.Module) -> Row:
    """`decoder-linear` against every matrix product that a forward runs inside the decoder's layers."""
    products = {n for s in inputs.samples() for n in truth.linear_weights(model, s.input_ids)}
    demanded = truth.inside_layers(model, products)
    chosen = select_parameters(model, "decoder-linear")
    missed = sorted(demanded - set(chosen))
    foreign = sorted(set(chosen) - truth.allowed(model, demanded))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    covered = sum(sizes[n] for n in demanded & set(chosen)) / max(1, sum(sizes[n] for n in demanded))
    return {
        "verdict": "wrong" if missed or foreign else "right",
        "coverage": covered,
        "missed": missed[:4],
        "foreign": foreign[:4],
    }


def _fisher(model: nn.Module) -> Row:
    """All parameters against the definition, then those that can be captured once more, in one ragged batch."""
    before = [p.requires_grad for p in model.parameters()]
    F = tomfisher.fisher_diagonal(model, inputs.samples(), params="all", progress=False)
    expected = truth.fisher(model, inputs.samples())
    wrong, worst = _differences(F, expected)
    captured = {name for name, method in F.methods.items() if method == "captured"}
    if captured:
        batched = tomfisher.fisher_diagonal(
            model,
            inputs.samples(),
            params=lambda name, _: name in captured,
            tokens_per_batch=1000,
            progress=False,
        )
        also, in_batch = _differences(batched, expected)
        wrong += [f"{text} (in a batch)" for text in also]
        worst = max(worst, in_batch)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    wrong += [f"{name} is missing" for name in sorted(trainable - set(F))]
    wrong += [] if before == [p.requires_grad for p in model.parameters()] else ["requires_grad was changed"]
    weights = set(select_parameters(model, "decoder-linear")) & set(F)
    total = sum(F[name].numel() for name in weights)
    return {
        "verdict": "differs" if wrong else "exact",
        "worst": worst,
        "wrong": len(wrong),
        "examples": wrong[:4],
        "captured": sum(F[name].numel() for name in weights & captured) / max(1, total),
        "unreached": sum(float(F[name].max()) == 0 for name in F),
    }


def _differences(F: tomfisher.FisherDiagonal, expected: dict[str, Tensor]) -> tuple[list[str], float]:
    """What is wrong, and the largest error as a multiple of what is allowed."""
    largest = max(float(values.max()) for values in expected.values())
    found, worst = [], 0.0
    for name, values in F.items():
        error = float((values.double() - expected[name]).abs().max())
        allowed = max(FISHER_TOLERANCE * float(expected[name].max()), FISHER_NOISE * largest)
        worst = max(worst, error / allowed)
        if not error <= allowed:
            found.append(f"{name} by {error / allowed:.0e} of what is allowed, {F.methods[name]}")
    return found, worst


def _choices(model: nn.Module) -> Row:
    """Log-probabilities of the answers, in every way that `score` runs them, against single rows."""
    tokenizer, stories = inputs.word_tokenizer(), inputs.stories()
    expected = [
        [_answer_logprob(model, tokenizer, story.prompt, choice) for choice in story.choices]
        for story in stories
    ]
    ways: dict[str, Any] = {}
    for settings in (
        {},
        {"pack": False},
        *({"share_prefix": False, "batch_size": size} for size in (1, 3, 32)),
    ):
        scores = score(model, tokenizer, stories, progress=False, **settings)
        worst = max(
            abs(a - b)
            for record, values in zip(scores.records, expected, strict=True)
            for a, b in zip(record.logprobs or (), values, strict=True)
        )
        run = scores.rules or {}
        way = WAYS.get(run["strategy"]) or WAYS[run["batches"]]
        ways[way] = max(worst, ways.get(way, 0.0))
    wrong = [f"{way} by {worst:.0e} nats" for way, worst in ways.items() if not worst <= NATS]
    return {
        "verdict": "differs" if wrong else "right",
        "ways": [way for way in WAYS.values() if way in ways],
        "examples": wrong,
    }


def _answer_logprob(model: nn.Module, tokenizer: Any, prompt: str, choice: str) -> float:
    before, answer = tokenizer(prompt)["input_ids"], tokenizer(choice)["input_ids"]
    logprobs = truth.next_logprobs(model, before + answer[:-1])
    return sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(answer))


def _completions(model: nn.Module) -> Row:
    """The first word of a greedy completion, against the likeliest tokens of single rows without a cache."""
    tokenizer, stories = inputs.word_tokenizer(), inputs.stories()
    scores = score(model, tokenizer, stories, method="generate", max_new_tokens=STEPS, progress=False)
    wrong = []
    for record, story in zip(scores.records, stories, strict=True):
        word, margin = _completion(model, tokenizer, tokenizer(story.prompt)["input_ids"])
        if record.predicted != word and margin > NATS:
            wrong.append(f"{story.id}: {record.predicted!r}, not {word!r}")
    return {"verdict": "differs" if wrong else "right", "examples": wrong[:4]}


def _completion(model: nn.Module, tokenizer: Any, ids: list[int]) -> tuple[str, float]:
    """The first word after some tokens, and by how many nats its tokens are likelier than the next best."""
    written: list[int] = []
    margin = float("inf")
    while len(written) < STEPS and tokenizer.eos_token_id not in written:
        best = truth.next_logprobs(model, ids + written)[-1].topk(2)
        written.append(int(best.indices[0]))
        margin = min(margin, float(best.values[0] - best.values[1]))
    words = tokenizer.decode(written, skip_special_tokens=True).split()
    return (words[0].strip(".,") if words else ""), margin


def _perplexity(model: nn.Module) -> Row:
    """The negative log-likelihood of two texts in windows, against single windows."""
    tokenizer, window = inputs.word_tokenizer(), 16
    expected = 0.0
    for text in inputs.TEXTS:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids) - 1, window):
            inside = ids[start : min(start + window, len(ids) - 1)]
            logprobs = truth.next_logprobs(model, inside)
            expected -= sum(float(logprobs[i, ids[start + i + 1]]) for i in range(len(inside)))
    found = perplexity(model, tokenizer, inputs.TEXTS, window=window, progress=False).nll
    gap = abs(found - expected)
    return {
        "verdict": "right" if gap <= 10 * NATS else "differs",
        "examples": [f"{found:.4f} nats, not {expected:.4f}"],
    }


def _perturbation(model: nn.Module) -> Row:
    """A mask of the largest weights written and undone: these entries change, and come back to the bit."""
    chosen = select_parameters(model, "decoder-linear")
    mask = tomfisher.top_fraction({name: p.detach().abs() for name, p in chosen.items()}, 0.02)
    before = _bits(model)
    wrong = []
    with tomfisher.perturb(model, mask) as perturbation:
        changed = sum(int((a != b).sum()) for a, b in zip(before, _bits(model), strict=True))
        if not 0.9 * perturbation.nnz <= changed <= perturbation.nnz or not changed:
            wrong.append(f"{changed} entries changed of {perturbation.nnz}")
    if not all(torch.equal(a, b) for a, b in zip(before, _bits(model), strict=True)):
        wrong.append("the weights are not what they were")
    return {"verdict": "differs" if wrong else "right", "entries": perturbation.nnz, "examples": wrong}


def _bits(model: nn.Module) -> list[Tensor]:
    """Every distinct parameter as integers, so that a NaN or a sign of zero counts too."""
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def _structure(model: nn.Module) -> Row:
    """What the lookup of the structure says of attention, heads and positions."""
    found = describe(model)
    attention = list(found.attention.values())
    heads = sorted({(a.heads, a.kv_heads, a.head_dim) for a in attention})
    rotated = sorted({f"rotary, {a.rotary.layout}" for a in attention if a.rotary is not None})
    return {
        "verdict": "found",
        "heads": [list(entry) for entry in heads],
        "positions": rotated or [str(found.position)],
    }


def _frequencies(model: nn.Module) -> Row:
    """The energies of rotary pairs are there and finite."""
    spectrum = rope_spectrum(model, [s.input_ids for s in inputs.samples()])
    finite = all(bool(torch.isfinite(layer.q_energy).all()) for layer in spectrum.layers)
    return {"verdict": "found" if finite else "differs", "layers": len(spectrum.layers)}


def _sinks(model: nn.Module) -> Row:
    """Every head's attention map, against the one that the model itself hands out."""
    ids = inputs.samples()[0].input_ids
    attention = describe(model).attention
    heads = [(layer, head) for layer, found in attention.items() for head in range(found.heads)]
    found = attention_sinks(model, [ids], heads=heads)
    own = truth.attention_maps(model, ids, list(attention))
    wrong = []
    for layer, head in heads:
        if layer in own:
            gap = float((truth.rows_to_one(found.maps[layer, head][0]) - own[layer][head]).abs().max())
            wrong += [f"layer {layer}, head {head} by {gap:.0e}"] if not gap <= ATTENTION else []
    return {"verdict": "differs" if wrong else "found", "compared": len(own), "examples": wrong[:4]}


CHECKS = {
    "fisher": _fisher,
    "selection": _selection,
    "choice": _choices,
    "generate": _completions,
    "perplexity": _perplexity,
    "perturbation": _perturbation,
    "structure": _structure,
    "frequencies": _frequencies,
    "sinks": _sinks,
}
