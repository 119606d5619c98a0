"""Tiny models with attention that is far from uniform, ragged prompts, and direct computations."""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tiny_models import attention_maps, random_model
from tomfisher.models.families import describe


def ragged(lengths=(64, 7, 30, 2, 19, 64), vocabulary=53):
    choose = random.Random(5)
    return [[choose.randrange(3, vocabulary) for _ in range(length)] for length in lengths]


def projected(model, prompt):
    """q and k `[H, T, D]` of every attention layer before the rotation, from what the projections put out."""
    found, handles = {}, []
    layers = describe(model).attention
    for index, attention in layers.items():
        for part in ("q", "k"):
            place = getattr(attention, part)
            norm = getattr(attention.module, f"{part}_norm", None)
            module = norm or model.get_submodule(place.parameter.rpartition(".")[0])

            def hook(_, __, output, key=(index, part), place=place, normed=norm is not None):
                if normed:  # Gemma-3 normalises heads first, [1, H, T, D]; the others [1, T, H, D]
                    first = model.config.model_type == "gemma3_text"
                    output = output[0].transpose(0, 1) if first else output[0]
                else:
                    output = output.reshape(len(prompt), -1)[:, place.index.flatten()]
                    output = output.view(len(prompt), *place.index.shape)
                found[key] = output.transpose(0, 1).double()

            handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {index: (found[index, "q"], found[index, "k"]) for index in layers}


def rotate(x, rotary):
    """Turn each pair of `[H, T, D]` as a complex number by position times frequency."""
    if rotary is None:
        return x
    i, j = rotary.pairs.T
    turns = torch.arange(x.shape[1])[:, None] * rotary.frequencies.double()
    z = torch.complex(x[..., i], x[..., j]) * torch.polar(torch.ones_like(turns), turns)
    out = x.clone()
    out[..., i], out[..., j] = z.real * rotary.attention_factor, z.imag * rotary.attention_factor
    return out


def maps(model, prompt):
    """Attention maps `[H, T, T]` by layer."""
    layers, found = list(describe(model).attention), attention_maps(model, prompt)
    assert len(found) == len(layers)
    return {index: weights.double() for index, weights in zip(layers, found, strict=True)}


@pytest.fixture
def lab():
    return SimpleNamespace(
        build=partial(random_model, noise=0.3, attn_implementation="eager"),
        prompts=ragged,
        projected=projected,
        rotate=rotate,
        maps=maps,
    )
