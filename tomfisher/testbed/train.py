"""Train the testbed model from scratch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tomfisher.files import atomic_path, sha256_of_file
from tomfisher.progress import progress_bar
from tomfisher.provenance import versions
from tomfisher.runtime.scan import linear_scan
from tomfisher.runtime.torch_state import on_cpu
from tomfisher.sample import IGNORED
from tomfisher.testbed import language
from tomfisher.testbed.batches import Batch, batches
from tomfisher.testbed.recipe import Recipe
from tomfisher.testbed.tokenizer import BEGIN, build_tokenizer, word_ids

if TYPE_CHECKING:
    from tomfisher.tasks.story import Story

HELD_OUT_STORIES = 640
LOGGED_STORIES = 320
HELD_OUT_DOCUMENTS = 100


def train(
    output_path: str | os.PathLike[str],
    recipe: Recipe | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a testbed model on the CPU and write it as a transformers folder.

    The weights are a pure function of the recipe, the thread count, the torch version and the processor.

    Args:
        output_path: new folder; it appears only when the training is complete.
        recipe: sizes, settings and seed; None for the shipped model's.
        threads: of the CPU during training; None leaves torch's number.
        progress: show a bar on a terminal.

    Returns:
        What `training.json` in the folder holds: command, recipe, thread count, versions, log (loss in nats per
        token, held-out accuracy) and result (accuracy per condition, perplexity per token of held-out general
        text, seconds, number of parameters, SHA-256 of the weights).

    Raises:
        ValueError: the folder exists, or a setting is out of range.
        FloatingPointError: the loss is no longer finite.
    """
    from transformers import AutoModelForCausalLM

    recipe = recipe or Recipe()
    target = Path(output_path)
    if target.exists():
        raise ValueError(
            f"{target} exists already and is not overwritten. Give another --output_path, or remove it first."
        )
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_cpu(recipe.seed, threads))
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_config(recipe.config(), dtype=torch.float32).train()
        stack.enter_context(linear_scan(model))
        log = _optimise(model, recipe, progress)
        seconds = time.perf_counter() - started
        record: dict[str, Any] = {
            "command": _command(recipe),
            "recipe": dataclasses.asdict(recipe),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "log": log,
            "result": {
                "accuracy": held_out_accuracy(model, _held_out(recipe, HELD_OUT_STORIES)),
                "perplexity": held_out_perplexity(model),
                "seconds": round(seconds, 1),
                "parameters": sum(weight.numel() for weight in model.parameters()),
            },
        }
    with atomic_path(target) as folder:
        _write(folder, model, record)
    return record


def _optimise(model: Any, recipe: Recipe, progress: bool) -> list[dict[str, Any]]:
    """Run all steps on a new model, and leave it in evaluation mode; give the log."""
    optimiser = _optimiser(model, recipe)
    held_out = _held_out(recipe, LOGGED_STORIES)
    log: list[dict[str, Any]] = []
    with progress_bar(total=recipe.steps, desc="training", unit="step", enabled=progress) as bar:
        for step, (story_batch, general_batch) in zip(range(recipe.steps), batches(recipe), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step)
            story_loss = _loss(model, story_batch, recipe.answer_weight)
            general_loss = _loss(model, general_batch, recipe.answer_weight)
            total = story_loss + general_loss
            if not bool(torch.isfinite(total)):
                raise FloatingPointError(
                    f"The training loss is {total.item()} at step {step + 1}. Use a smaller learning rate."
                )
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            bar.update(1)
            if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
                accuracy = held_out_accuracy(model, held_out)
                log.append(
                    {
                        "step": step + 1,
                        "story_loss": round(story_loss.item(), 4),
                        "general_loss": round(general_loss.item(), 4),
                        "accuracy": accuracy["all"],
                        **_false_beliefs(accuracy, recipe),
                    }
                )
                bar.set_postfix(loss=f"{total.item():.3f}", held_out=f"{accuracy['all']:.3f}")
    model.eval()
    return log


def _command(recipe: Recipe) -> str:
    """The command line that makes these weights again, when only named settings differ from the table's."""
    flags = [f"--steps {recipe.steps}", f"--seed {recipe.seed}", f"--threads {torch.get_num_threads()}"]
    if recipe.second_order:
        flags.insert(0, "--second_order")
    if recipe.architecture != "llama" or recipe.second_order:
        flags.insert(0, f"--architecture {recipe.architecture}")
    return f"tomfisher testbed train {' '.join(flags)}"


def _held_out(recipe: Recipe, n: int) -> list[Story]:
    """Held-out stories of every family that is trained: `n` questions of the first-order ones, and their like."""
    if recipe.second_order:
        n = n * len(language.FAMILIES) // len(language.CONDITIONS)
    return language.stories(n, second_order=recipe.second_order)


def _false_beliefs(accuracy: dict[str, float], recipe: Recipe) -> dict[str, float]:
    """The log's entries on false belief: first order, and second order where it is trained."""
    first = _mean([accuracy[f"{family}/false-belief"] for family in language.CONDITIONS])
    if not recipe.second_order:
        return {"false_belief": first}
    return {"false_belief": first, "second_order": accuracy[f"{language.SECOND_ORDER}/false-belief"]}


def _optimiser(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norm weights and the state matrices of state-space layers do not."""
    decaying = {name for name, w in model.named_parameters() if w.ndim > 1 and not name.endswith(".A_log")}
    matrices = [weight for name, weight in model.named_parameters() if name in decaying]
    vectors = [weight for name, weight in model.named_parameters() if name not in decaying]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )


def _loss(model: Any, batch: Batch, answer_weight: float) -> Tensor:
    """Mean negative log-likelihood of the supervised tokens, plus `answer_weight` times that of the answers."""
    labels = batch.labels[:, 1:]
    kept = labels != IGNORED
    hidden = model.base_model(batch.input_ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.get_output_embeddings()(hidden[kept])
    losses = functional.cross_entropy(logits, labels[kept], reduction="none")
    answers = losses[batch.answers[:, 1:][kept]]
    return losses.mean() + answer_weight * answers.mean() if len(answers) else losses.mean()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@torch.inference_mode()
def held_out_accuracy(model: Any, stories: Sequence[Story], rows: int = 64) -> dict[str, float]:
    """Fraction of stories whose right choice has the highest log-probability.

    Args:
        model: a causal language model over the testbed's vocabulary.
        stories: testbed stories; every choice is one word.
        rows: prompts per forward pass.

    Returns:
        Accuracy per `Story.group`, and "all".
    """
    ids = word_ids()
    right: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(stories), rows):
        part = stories[start : start + rows]
        lines = [[ids[BEGIN], *(ids[word] for word in story.prompt.split())] for story in part]
        padded = torch.zeros((len(part), max(map(len, lines))), dtype=torch.int64)
        for row, line in enumerate(lines):
            padded[row, : len(line)] = torch.tensor(line)
        logits = model(padded).logits
        for row, (story, line) in enumerate(zip(part, lines, strict=True)):
            scores = logits[row, len(line) - 1, [ids[choice] for choice in story.choices]]
            right[story.group].append(float(int(scores.argmax()) == story.answer))
    everything = [value for values in right.values() for value in values]
    return {**{group: _mean(values) for group, values in sorted(right.items())}, "all": _mean(everything)}


@torch.inference_mode()
def held_out_perplexity(model: Any, documents: int = HELD_OUT_DOCUMENTS) -> float:
    """Perplexity per token of held-out general text, one document at a time.

    Args:
        model: a causal language model over the testbed's vocabulary.
        documents: how many documents of `language.corpus()`.

    Returns:
        exp(mean negative log-likelihood in nats).
    """
    ids = word_ids()
    total, tokens = 0.0, 0
    for text in language.corpus(documents).documents:
        line = torch.tensor([[ids[BEGIN], *(ids[word] for word in text.split())]])
        logits = model(line).logits[0, :-1]
        total += float(functional.cross_entropy(logits, line[0, 1:], reduction="sum"))
        tokens += line.shape[1] - 1
    return float(torch.tensor(total / tokens, dtype=torch.float64).exp())


def _write(folder: Path, model: Any, record: dict[str, Any]) -> None:
    """Weights, configuration, tokenizer and `training.json`."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    record["result"]["sha256"] = sha256_of_file(folder / "model.safetensors")
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
