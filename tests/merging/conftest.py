"""Three tiny models that were fine-tuned from one, on data of their own, with a Fisher store of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import tomfisher
from tiny_models import random_model
from tokenizer_kinds import word_level
from tomfisher import Sample
from training import training_samples


class Tuned(NamedTuple):
    """Folders of the models and of their stores, and what each was tuned on."""

    models: list[str]
    stores: list[str]
    samples: list[list[Sample]]


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """In bfloat16, in shards of 10 kB; F of all parameters."""
    return _tune(tmp_path_factory.mktemp("tuned"), torch.bfloat16, params="all")


def _tune(folder: Path, dtype: torch.dtype, **options: Any) -> Tuned:
    base = random_model("llama-gqa", seed=5)
    data = training_samples()
    made = Tuned([], [], [data[:3], data[3:7], data[7:]])
    for i, samples in enumerate(made.samples):
        model = copy.deepcopy(base).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            sum(model(s.input_ids[None], labels=s.labels[None]).loss for s in samples).backward()
            optimizer.step()
        made.models.append(str(folder / f"model{i}"))
        made.stores.append(str(folder / f"store{i}"))
        model.to(dtype).save_pretrained(made.models[i], max_shard_size="10KB")
        word_level(["</s>", "<unk>", f"word{i}"], eos_token="</s>", unk_token="<unk>").save_pretrained(
            made.models[i]
        )
        loaded = tomfisher.models.load_model(made.models[i], dtype="fp32", device="cpu")
        fisher = tomfisher.fisher_diagonal(loaded.model, samples, progress=False, **options)
        fisher.metadata["model"] = loaded.identity
        fisher.save(made.stores[i])
    return made


@pytest.fixture
def tune(tmp_path: Path) -> Callable[..., Tuned]:
    """Makes models of another dtype, or stores with other options."""
    return lambda dtype=torch.float32, **options: _tune(tmp_path, dtype, **options)
