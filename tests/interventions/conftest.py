"""Tiny models of every rotary layout with attention far from uniform, and what happens inside them."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tiny_models import attention_maps, random_model
from tomfisher.analysis.collect import watching
from tomfisher.models.families import describe


def prompt(length=23, seed=5):
    choose = random.Random(seed)
    return [choose.randrange(3, 53) for _ in range(length)]


def logits(model, ids, **options):
    ids = torch.tensor(ids if isinstance(ids[0], list) else [ids])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def inside(model, ids):
    """What each attention layer gets for one prompt: q `[H, T, D]` and k `[H_kv, T, D]`."""
    found = {}
    with watching(describe(model), lambda layer, seen: found.update({layer: (seen.q[0], seen.k[0])})):
        logits(model, ids)
    return found


@pytest.fixture
def lab():
    return SimpleNamespace(
        build=partial(random_model, noise=0.3, attn_implementation="eager"),
        prompt=prompt,
        logits=logits,
        maps=attention_maps,
        inside=inside,
    )
