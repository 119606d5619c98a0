from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

import truth
from tomfisher import FisherDiagonal
from tomfisher.cli.main import main
from tomfisher.merging import merge
from tomfisher.merging import merge as merge_function


def tensors_of(folder: str | Path) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        merged |= load_file(file)
    return merged


def reference(
    tuned: Any, fishers: list[Mapping[str, Tensor]], coefficients: list[float], floor: float = 0.0
) -> dict[str, Tensor]:
    """The merge of whole models, in float64."""
    models = [tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in tuned.models]
    merged = {}
    for name, first in models[0].named_parameters():
        top, bottom = torch.zeros_like(first), torch.zeros_like(first)
        for c, model, F, samples in zip(coefficients, models, fishers, tuned.samples, strict=True):
            weight = c * (F[name].double() / len(samples) + floor)
            top += weight * model.get_parameter(name).detach()
            bottom += weight
        plain = sum(c * m.get_parameter(name).detach() for c, m in zip(coefficients, models, strict=True))
        merged[name] = torch.where(bottom > 0, top / bottom, plain / sum(coefficients)).detach()
    return merged


@pytest.mark.parametrize(("coefficients", "floor"), [(None, 0.0), ([2.0, 1.0, 0.5], 1e-3)])
def test_three_fine_tuned_models_against_a_dense_reference(
    tuned: Any, tmp_path: Path, coefficients: list[float] | None, floor: float
) -> None:
    done = merge(tuned.models, tuned.stores, tmp_path / "merged", coefficients, floor)
    fishers: list[Mapping[str, Tensor]] = [FisherDiagonal.load(path) for path in tuned.stores]
    got, want = tensors_of(done.path), reference(tuned, fishers, coefficients or [1.0] * 3, floor)
    assert got.keys() == want.keys() == set(done.by_fisher) and not done.plainly
    for name, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        error = (tensor.double() - want[name]).abs()
        # torch rounds float64 to bfloat16 by way of float32
        assert bool((error <= want[name].abs() * (2**-8 + 2**-23)).all()), name
    others = [tensors_of(path) for path in tuned.models]
    moved = [any(not torch.equal(got[n], other[n]) for n in got) for other in others]
    plain = {n: (sum(o[n].double() for o in others) / 3).bfloat16() for n in got}
    assert all(moved) and any(not torch.equal(got[n], plain[n]) for n in got)


def test_a_merge_in_float32_with_fisher_of_autograd_in_float64(
    tune: Callable[..., Any], tmp_path: Path
) -> None:
    tuned = tune(torch.float32)
    done = merge(tuned.models, tuned.stores, tmp_path / "merged")
    models = [tf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in tuned.models]
    fishers: list[Mapping[str, Tensor]] = [
        truth.fisher(model, samples) for model, samples in zip(models, tuned.samples, strict=True)
    ]
    got, want = tensors_of(done.path), reference(tuned, fishers, [1.0] * 3)
    assert done.plainly and {n.split(".")[-2] for n in done.plainly} >= {"embed_tokens", "norm"}
    others = [tensors_of(path) for path in tuned.models]
    for name in done.by_fisher:
        assert torch.allclose(got[name].double(), want[name], rtol=1e-4, atol=1e-7), name
    for name in done.plainly:
        assert torch.equal(got[name], (sum(o[name].double() for o in others) / 3).float())


def test_the_folder_is_the_first_models_and_transformers_loads_it(tuned: Any, tmp_path: Path) -> None:
    done = merge(tuned.models, tuned.stores, tmp_path / "merged")
    first, merged = Path(tuned.models[0]), done.path
    names = {file.name for file in first.iterdir()}
    assert {file.name for file in merged.iterdir()} == names | {"merge.json"}
    for name in names:
        same = (first / name).read_bytes() == (merged / name).read_bytes()
        assert same != name.endswith(".safetensors"), name
    assert len(list(merged.glob("*.safetensors"))) > 3
    model = tf.AutoModelForCausalLM.from_pretrained(merged)
    state = tensors_of(merged)
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in state.items())
    assert tf.AutoTokenizer.from_pretrained(merged).convert_tokens_to_ids("word0") == 2
    record = json.loads((merged / "merge.json").read_text())
    assert [one["num_samples"] for one in record["merged"]] == [3, 4, 3]
    assert [one["model"] for one in record["merged"]] == tuned.models


def test_equal_models_stay_as_they_are(tuned: Any, tmp_path: Path) -> None:
    models, stores = [tuned.models[0]] * 2, [tuned.stores[0]] * 2
    done = merge(models, stores, tmp_path / "merged", [3, 7])
    assert all(torch.equal(t, tensors_of(models[0])[n]) for n, t in tensors_of(done.path).items())


def test_parts_of_a_tensor_make_the_whole(
    tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tensors_of(merge(tuned.models, tuned.stores, tmp_path / "whole").path)
    monkeypatch.setattr(sys.modules[merge_function.__module__], "PART", 501)
    parts = tensors_of(merge(tuned.models, tuned.stores, tmp_path / "parts").path)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def edited(path: str, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """A copy of a model with other tensors, in one file."""
    shutil.copytree(path, folder)
    tensors = tensors_of(folder)
    for file in folder.glob("model*"):
        file.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(NAME), rf"hold different tensors, {NAME} \(48, 32\) \(there none\)"),
        (lambda t: t.update({NAME: t[NAME][:40].clone()}), rf"{NAME} \(48, 32\) \(there \(40, 32\)\)"),
        (lambda t: t.update(extra=torch.zeros(2)), r"extra \(not in the first\)"),
    ],
)
def test_other_names_and_shapes_are_refused_by_name(
    tuned: Any, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], reason: str
) -> None:
    other = edited(tuned.models[1], tmp_path / "other", change)
    with pytest.raises(ValueError, match=reason):
        merge([tuned.models[0], other], None, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_nan_is_refused_with_model_and_tensor(tuned: Any, tmp_path: Path) -> None:
    broken = edited(tuned.models[1], tmp_path / "broken", lambda t: t[NAME].view(-1)[5:6].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match=f"{NAME} of {broken} holds NaN"):
        merge([tuned.models[0], broken], None, tmp_path / "merged")
    fisher = FisherDiagonal.load(tuned.stores[1])
    values = {name: fisher[name].clone() for name in fisher}
    values[NAME].view(-1)[3] = -1.0
    FisherDiagonal(values, 4, 4, metadata=fisher.metadata).save(tmp_path / "negative")
    with pytest.raises(FloatingPointError, match=f"negative F in {NAME}"):
        merge(tuned.models[:2], [tuned.stores[0], str(tmp_path / "negative")], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_stores_that_do_not_belong_are_refused(tuned: Any, tune: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"was taken on other weights than those of.*in the order of the models"
    ):
        merge(tuned.models, [tuned.stores[1], tuned.stores[0], tuned.stores[2]], tmp_path / "merged")
    with pytest.raises(ValueError, match="got 3 models and 2 stores"):
        merge(tuned.models, tuned.stores[:2], tmp_path / "merged")
    fisher = FisherDiagonal.load(tuned.stores[1])
    fewer = {name: fisher[name] for name in list(fisher)[1:]}
    FisherDiagonal(fewer, 4, 4, metadata=fisher.metadata).save(tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"hold different tensors, such as model\.embed_tokens\.weight"):
        merge(tuned.models[:2], [tuned.stores[0], str(tmp_path / "fewer")], tmp_path / "merged")
    odd = {**{name: fisher[name] for name in fisher}, "model.mixed.weight": torch.ones(2)}
    FisherDiagonal(odd, 4, 4, metadata=fisher.metadata).save(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"model.mixed.weight \(2,\) \(there none\)"):
        merge(tuned.models[:2], [tuned.stores[0], str(tmp_path / "odd")], tmp_path / "merged")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"coefficients": [1.0]}, "must be 3 positive numbers"),
        ({"coefficients": [1.0, 0.0, 1.0]}, "must be 3 positive numbers"),
        ({"floor": -1.0}, "floor must be 0 or a positive number"),
    ],
)
def test_arguments_out_of_range(tuned: Any, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        merge(tuned.models, tuned.stores, tmp_path / "merged", **options)
    with pytest.raises(ValueError, match="takes two models or more, got 1"):
        merge(tuned.models[:1], tuned.stores[:1], tmp_path / "merged")


def test_the_command(tuned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "merged"
    words = ["merge", "--models", *tuned.models, "--stores", *tuned.stores, "--output_path", str(target)]
    assert main([*words, "--coefficients", "1,2,3", "--floor", "1e-9"]) == 0
    assert "3 models merged, 21 tensors by Fisher" in capsys.readouterr().out.replace("\n  ", " ")
    expected = merge(tuned.models, tuned.stores, tmp_path / "again", [1, 2, 3], 1e-9)
    assert all(torch.equal(t, tensors_of(target)[n]) for n, t in tensors_of(expected.path).items())
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    (target / "mine.txt").write_text("mine")
    assert main([*words, "--overwrite"]) == 2 and "mine.txt too" in capsys.readouterr().err.replace(
        "\n  ", " "
    )
    inside = [*words[:-1], tuned.models[1], "--overwrite"]
    assert main(inside) == 2 and "--models reads" in capsys.readouterr().err.replace("\n  ", " ")


MEASURED = """
import sys
from safetensors.torch import load_file
from tomfisher.benchmarks.memory import peak_extra_bytes
from tomfisher.merging import merge
models, stores = sys.argv[1].split(","), sys.argv[2].split(",")
merge(["small", "small"], None, "warm", progress=False)
merged = peak_extra_bytes(lambda: merge(models, stores, "merged", progress=False))
held = peak_extra_bytes(lambda: [tensor.clone() for i in sys.argv[3].split(",") for tensor in load_file(i).values()])
print(merged, held)
"""


@pytest.mark.slow
def test_memory_is_that_of_two_shards_at_most(tmp_path: Path) -> None:
    """Two models of 160 MiB in four files or so, with stores as large."""
    config = {"vocab_size": 64, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    small = {
        **config,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    tf.LlamaForCausalLM(tf.LlamaConfig(**small)).save_pretrained(tmp_path / "small")
    models, stores = [], []
    for i in range(2):
        torch.manual_seed(i)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**config))
        model.save_pretrained(tmp_path / f"model{i}", max_shard_size="40MB")
        F = {name: torch.rand_like(p) for name, p in model.named_parameters() if ".layers." in name}
        FisherDiagonal(F, 2, 2).save(tmp_path / f"store{i}")
        models.append(f"model{i}")
        stores.append(f"store{i}")
    shard = max(file.stat().st_size for file in (tmp_path / "model0").glob("*.safetensors"))
    whole = sum(file.stat().st_size for file in (tmp_path / "model0").glob("*.safetensors"))
    assert whole > 3.5 * shard
    files = ",".join(map(str, sorted((tmp_path / "model0").glob("*.safetensors"))))
    code = [sys.executable, "-c", MEASURED, ",".join(models), ",".join(stores), files]
    done = subprocess.run(code, capture_output=True, text=True, check=True, cwd=tmp_path)
    if "None" in done.stdout:
        pytest.skip("this system does not say how much memory a process took")
    merged, held = map(int, done.stdout.split())
    assert merged <= 2 * shard, (merged / 2**20, shard / 2**20)
    assert held >= whole > 2 * shard  # so that a merge of whole models would be seen
