"""Teach a language model the ability: a LoRA adapter, trained on stories about beliefs and on general text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher import evaluate, tasks
from tomfisher.files import atomic_path, sha256_of_file, sha256_of_text
from tomfisher.finetune.lora import require_peft
from tomfisher.fisher.objective import sample_losses
from tomfisher.models.load import LoadedModel, load_model
from tomfisher.progress import progress_bar
from tomfisher.provenance import versions
from tomfisher.runtime.batches import collate
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.rules import check_rules
from tomfisher.runtime.structure import is_linear
from tomfisher.runtime.torch_state import on_cpu
from tomfisher.sample import Sample
from tomfisher.tasks import corpus, encode
from tomfisher.testbed.english import replay, stories
from tomfisher.testbed.recipe import warm_cosine

WEIGHTS = "adapter_model.safetensors"
RECORD = "training.json"
HELD_OUT_QUESTIONS = 320
HELD_OUT_TOKENS = 8192
DRAWN_WINDOWS = 400


@dataclass(frozen=True)
class AdapterRecipe:
    """Everything that decides the adapter, apart from the base model, the thread count and the versions.

    Args:
        steps: optimiser steps.
        seed: of the adapter's first values, of the stories and of the windows.
        rank: of the adapter of every linear layer of the decoder; its output is added with factor 2.
        stories: questions per step.
        windows: windows of general text in every `replay_every`-th step.
        window_tokens: length of a window.
        replay_every: steps from one with general text to the next.
        slips: fraction of the training answers that are wrong, which keeps the model's certainty bounded: no story's
            gradient vanishes, and the Fisher diagonal of right answers sees all of them.
        learning_rate: peak of AdamW's rate; linear warm-up, then cosine decay to a tenth.
        warmup: warm-up steps.
        log_every: steps between two entries of the log.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int = 300
    seed: int = 0
    rank: int = 16
    stories: int = 16
    windows: int = 4
    window_tokens: int = 256
    replay_every: int = 2
    slips: float = 0.04
    learning_rate: float = 3e-4
    warmup: int = 20
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "rank", "stories", "windows", "replay_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.window_tokens < 2:
            raise ValueError(f"window_tokens must be at least 2, got {self.window_tokens}.")
        if not 0 <= self.slips < 0.5:
            raise ValueError(f"slips must be at least 0 and below 0.5, got {self.slips}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate!r}.")

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0)."""
        return warm_cosine(step, self.steps, self.warmup, self.learning_rate)


def train_adapter(
    base: str,
    output_path: str | os.PathLike[str],
    recipe: AdapterRecipe | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an adapter on stories of `tomfisher.testbed.english`, and write it as a folder that `load_model` loads.

    The answers are supervised: loss = mean over the questions of the answer's mean negative log-likelihood, plus, in
    every `replay_every`-th step, that of the windows of general text. AdamW, gradients clipped to norm 1, float32.

    Args:
        base: the model, by a name or path that `load_model` takes.
        output_path: new folder; it appears only when the training is complete.
        recipe: sizes, settings and seed; None for the defaults.
        threads: of the CPU during training; None leaves torch's number.
        progress: show bars on a terminal.

    Returns:
        What `training.json` in the folder holds: command, base and the hash of its weights, recipe, hash of the general
        text, thread count, versions, log (losses in nats per token) and result (accuracy per condition on stories of
        the evaluation split, perplexity per token of text that was not trained on, both before and after, with the
        adapter as it is stored, in bfloat16; seconds; SHA-256 of the stored values).

    Raises:
        ValueError: the folder exists, or a setting is out of range.
        FloatingPointError: the loss is no longer finite.
        ModuleNotFoundError: peft is not installed.
    """
    recipe = recipe or AdapterRecipe()
    target = Path(output_path)
    if target.exists():
        raise ValueError(
            f"{target} exists already and is not overwritten. Give another --output_path, or remove it first."
        )
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}.")
    require_peft()
    with on_cpu(recipe.seed, threads):
        loaded = load_model(base, dtype="fp32", device="cpu")
        documents = replay.documents()
        text = corpus.Corpus("documentation strings", documents, sha256_of_text(*documents))
        before = _held_out(loaded, progress)
        started = time.perf_counter()
        tuner = _inject(loaded.model, recipe)
        log = _optimise(loaded, recipe, text, progress)
        seconds = time.perf_counter() - started
        record: dict[str, Any] = {
            "command": f"tomfisher testbed train --model {base} --steps {recipe.steps} --seed {recipe.seed}"
            f" --threads {torch.get_num_threads()}",
            "base": base,
            "base_weights_sha256": loaded.identity["weights_sha256"],
            "recipe": dataclasses.asdict(recipe),
            "general_text_sha256": text.sha256,
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "log": log,
        }
        with atomic_path(target) as folder:
            _write(folder, tuner, base)
            after = _held_out(load_model(str(folder), dtype="fp32", device="cpu"), progress)
            record["result"] = {
                "before": before,
                "after": after,
                "seconds": round(seconds, 1),
                "sha256": sha256_of_file(folder / WEIGHTS),
            }
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _inject(model: Any, recipe: AdapterRecipe) -> Any:
    """Adapters beside every linear layer but the head, put into the model."""
    import peft

    head = model.get_output_embeddings()
    targets = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _optimise(
    loaded: LoadedModel, recipe: AdapterRecipe, text: corpus.Corpus, progress: bool
) -> list[dict[str, Any]]:
    """Run all steps; give the log."""
    model = loaded.model
    values = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    optimiser = torch.optim.AdamW(values, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    questions = _questions(loaded.tokenizer, recipe)
    windows = _windows(loaded.tokenizer, recipe, text)
    log: list[dict[str, Any]] = []
    with (
        frozen(model, values),
        progress_bar(total=recipe.steps, desc="training", unit="step", enabled=progress) as bar,
    ):
        check_rules(model, [sample.input_ids for sample in next(questions)], recipe.stories)
        for step in range(recipe.steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step)
            losses = {"answers": _backward(model, next(questions), step)}
            if step % recipe.replay_every == 0:
                losses["general_text"] = _backward(model, next(windows), step)
            torch.nn.utils.clip_grad_norm_(values, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            bar.update(1)
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            if step % recipe.log_every == 0 or step + 1 == recipe.steps:
                log.append({"step": step + 1, **{name: round(loss, 4) for name, loss in losses.items()}})
    return log


def _backward(model: nn.Module, samples: Sequence[Sample], step: int) -> float:
    """Add the gradient of the samples' mean loss; give that loss."""
    loss: Tensor = sample_losses(model, collate(samples, range(len(samples))), "empirical", "mean", 0).mean()
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"The training loss is {loss.item()} at step {step + 1}. Use a smaller learning rate."
        )
    loss.backward()
    return loss.item()


def _questions(tokenizer: Any, recipe: AdapterRecipe) -> Iterator[list[Sample]]:
    """The questions of one step after the other, a few of them with the wrong answer."""
    rng = random.Random(f"tomfisher.finetune.adapter:slips:{recipe.seed}")
    drawn = stories.stories(recipe.seed)
    while True:
        part = list(itertools.islice(drawn, recipe.stories))
        slipped = [
            dataclasses.replace(story, answer=1 - story.answer) if rng.random() < recipe.slips else story
            for story in part
        ]
        yield encode(tokenizer, slipped)


def _windows(tokenizer: Any, recipe: AdapterRecipe, text: corpus.Corpus) -> Iterator[list[Sample]]:
    """The windows of general text of one step after the other; drawn anew when `DRAWN_WINDOWS` are used up."""
    for turn in itertools.count():
        seed = recipe.seed * 1_000_003 + turn
        drawn = corpus.windows(tokenizer, text, recipe.window_tokens, DRAWN_WINDOWS, seed)
        for start in range(0, len(drawn) - recipe.windows + 1, recipe.windows):
            yield drawn[start : start + recipe.windows]


def _held_out(loaded: LoadedModel, progress: bool) -> dict[str, Any]:
    """Accuracy per condition on stories, and perplexity of text, neither of which was trained on."""
    scored = evaluate.score(
        loaded.model, loaded.tokenizer, tasks.load("false-belief", n=HELD_OUT_QUESTIONS), progress=progress
    )
    reference = corpus.load(corpus.PYTHON_REFERENCE).text
    perplexity = evaluate.perplexity(
        loaded.model, loaded.tokenizer, reference, max_tokens=HELD_OUT_TOKENS, progress=progress
    )
    accuracy = {group: result.accuracy for group, result in scored.by_group().items()}
    return {"accuracy": accuracy, "perplexity": perplexity.token}


def _write(folder: Path, tuner: Any, base: str) -> None:
    """The adapter in bfloat16, with the name of its model."""
    from safetensors.torch import load_file, save_file

    tuner.peft_config["default"].base_model_name_or_path = base
    tuner.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    values = {name: value.to(torch.bfloat16) for name, value in load_file(folder / WEIGHTS).items()}
    save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
