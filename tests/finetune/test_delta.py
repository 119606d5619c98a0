"""The delta file: the trained values come back to the bit, and what is no delta is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from bits import same_bits, state_of
from tomfisher.finetune import Delta, apply, finetune_masked
from tomfisher.finetune.delta import DELTA
from training import some_mask, trainable_model


@pytest.fixture
def trained(samples, tmp_path):
    """A model as before its training, its bits before and after, and the file."""
    model = trainable_model()
    before = state_of(model)
    with finetune_masked(model, some_mask(model), samples, steps=2, learning_rate=0.01) as tuned:
        after = state_of(model)
        tuned.delta.save(tmp_path / "d.safetensors")
    return model, before, after, tmp_path / "d.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(dtype, samples, tmp_path):
    model = trainable_model("llama-tied", dtype)
    before = state_of(model)
    with finetune_masked(model, some_mask(model), samples, steps=2, learning_rate=0.01) as tuned:
        after = state_of(model)
        tuned.delta.save(tmp_path / "d.safetensors")
    loaded = Delta.load(tmp_path / "d.safetensors")
    assert loaded.nnz == tuned.delta.nnz and loaded.metadata == tuned.delta.metadata
    assert loaded.metadata["training"]["steps"] == 2
    with apply(model, loaded) as applied:
        assert same_bits(state_of(model), after)
        applied.undo()
        assert same_bits(state_of(model), before)
        applied.reapply()
        assert same_bits(state_of(model), after)
    assert same_bits(state_of(model), before)
    assert (tmp_path / "d.safetensors").stat().st_size < 20 * loaded.nnz + 20_000


def test_another_model_is_refused(trained):
    model, _, _, file = trained
    delta = Delta.load(file)
    with pytest.raises(ValueError, match=r"float16 here, the delta was trained in torch\.float32"):
        apply(trainable_model(dtype=torch.float16), delta)
    with pytest.raises(ValueError, match="must be of this model"):
        apply(trainable_model("gpt2"), delta)
    name = next(iter(delta.indices))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[delta.indices[name][0]] += 1
    count = delta.indices[name].numel()
    with pytest.raises(ValueError, match=rf"1 of {count} entries of {name} do not hold"):
        apply(model, delta)
    with apply(model, delta, check=False):
        assert torch.equal(model.get_parameter(name).view(-1)[delta.indices[name]], delta.new[name])


def test_order_of_undoing_and_moved_weights(trained):
    model, _, _, file = trained
    delta = Delta.load(file)
    first = apply(model, delta)
    second = apply(model, delta, check=False)
    with pytest.raises(RuntimeError, match="applied later"):
        first.undo()
    second.undo()
    with pytest.raises(RuntimeError, match="cannot be undone"):
        second.undo()
    with pytest.raises(RuntimeError, match="applied twice"):
        first.reapply()
    model.to(torch.float64)
    with pytest.raises(RuntimeError, match="was replaced since"):
        first.undo()


def test_files_that_are_no_delta(trained, tmp_path):
    _, _, _, file = trained
    with pytest.raises(FileNotFoundError, match="No delta file"):
        Delta.load(tmp_path / "none")
    raw = bytearray(file.read_bytes())
    cut = tmp_path / "cut"
    cut.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        Delta.load(cut)
    raw[-3] ^= 1
    flipped = tmp_path / "flipped"
    flipped.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum differs"):
        Delta.load(flipped)
    other = tmp_path / "other"
    save_file({"x": torch.zeros(2)}, str(other))
    with pytest.raises(ValueError, match="no delta"):
        Delta.load(other)


def hostile(path, tensors, header, version="1"):
    """A file whose checksum is right and whose content is not."""
    text = header if isinstance(header, str) else json.dumps(header)
    about = {
        "format": DELTA.format,
        "version": version,
        "delta": text,
        "checksum": DELTA.checksum(tensors, text),
    }
    save_file(tensors, str(path), metadata=about)
    return path


def parts(**changes):
    base = {"index:w": torch.tensor([1, 5]), "old:w": torch.zeros(2), "new:w": torch.ones(2)}
    return {**base, **{name.replace("_", ":"): value for name, value in changes.items()}}


GOOD = {"shapes": {"w": [2, 3]}, "metadata": {}}


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        (parts(index_w=torch.tensor([5, 1])), GOOD, "strictly rising"),
        (parts(index_w=torch.tensor([1, 6])), GOOD, "from 0 to 5"),
        (parts(index_w=torch.tensor([-1, 2])), GOOD, "from 0 to 5"),
        (parts(index_w=torch.tensor([1.0, 5.0])), GOOD, "int64"),
        (parts(new_w=torch.ones(3)), GOOD, "one per position"),
        (parts(new_w=torch.tensor([1.0, float("nan")])), GOOD, "finite"),
        (parts(new_w=torch.ones(2, dtype=torch.float16)), GOOD, "one floating-point dtype"),
        (
            parts(old_w=torch.zeros(2, dtype=torch.int32), new_w=torch.ones(2, dtype=torch.int32)),
            GOOD,
            "dtype",
        ),
        (parts(other_w=torch.ones(2)), GOOD, "of no use"),
        (parts(), {"shapes": {"w": [2, 3], "v": [1]}, "metadata": {}}, "index:v"),
        (parts(), {"shapes": {"w": [2, -3]}, "metadata": {}}, "damaged"),
        (parts(), {"shapes": {"w": "no"}, "metadata": {}}, "damaged"),
        (parts(), {"shapes": {"w": [2**70, 2**70]}, "metadata": {}}, "damaged"),
        (parts(), {"shapes": ["w"], "metadata": {}}, "damaged"),
        (parts(), {"metadata": {}}, "damaged"),
        (parts(), "[1]", "unreadable header"),
        (parts(), "{", "unreadable header"),
    ],
)
def test_hostile_files_are_refused(tensors, header, words, tmp_path):
    path = hostile(tmp_path / "h", tensors, header)
    with pytest.raises(ValueError, match=words) as caught:
        Delta.load(path)
    assert str(path) in str(caught.value)


def test_newer_version_and_a_good_hand_made_file(tmp_path):
    with pytest.raises(ValueError, match=r"version 2.*Update tomfisher"):
        Delta.load(hostile(tmp_path / "v", parts(), GOOD, version="2"))
    assert Delta.load(hostile(tmp_path / "g", parts(), GOOD)).nnz == 2
