from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from tomfisher.masks import SparseMask
from tomfisher.perturbation import Fill, perturb

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def one(weight: torch.Tensor, index: list[int]) -> tuple[dict[str, torch.Tensor], SparseMask]:
    return {"w": weight}, SparseMask({"w": torch.tensor(index)}, {"w": tuple(weight.shape)})


def filled(weight: torch.Tensor, index: list[int], **arguments) -> list[float]:
    target, mask = one(weight, index)
    with perturb(target, mask, **arguments):
        return weight.view(-1)[index].tolist()


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ("mean", "mean", 0.0),
        ("noise", "noise", 0.0),
        ("zero", "number", 0.0),
        (0, "number", 0.0),
        (-1.5, "number", -1.5),
        ("0.5", "number", 0.5),
        (("scale", 2), "scale", 2.0),
        ("scale:0.5", "scale", 0.5),
    ],
)
def test_parse(given, kind: str, value: float) -> None:
    assert Fill.parse(given) == Fill(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    ["median", "scale", "scale:", "scale:x", ("scale", None), ("zero", 1), math.nan, "inf", True, None, [1]],
)
def test_an_unknown_fill_is_refused(given) -> None:
    with pytest.raises(ValueError, match="fill must be 'mean', 'zero', 'noise', a finite number"):
        Fill.parse(given)


@pytest.mark.parametrize("given", ["mean", "zero", "noise", 0.125, "scale:1.5"])
def test_the_text_of_a_fill_reads_back(given) -> None:
    assert Fill.parse(str(Fill.parse(given))) == Fill.parse(given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_is_of_the_unmasked_entries(dtype: torch.dtype) -> None:
    weight = torch.tensor([100.0, 1.0, 2.0, 6.0, -100.0], dtype=dtype)
    assert filled(weight, [0, 4]) == [3.0, 3.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_authors_mean_counts_masked_entries_as_zeros(dtype: torch.dtype) -> None:
    weight = torch.tensor([100.0, 1.0, 2.0, 6.0, -100.0, 0.0], dtype=dtype)
    assert filled(weight, [0, 4], compat="authors") == [1.5, 1.5]  # 9 / 6 instead of 9 / 4
    large = torch.randn(300, 70).to(dtype)
    index = list(range(0, 21_000, 50))
    keep = torch.ones(21_000, dtype=torch.bool)
    keep[index] = False
    expected = (large.view(-1).double() * keep).mean().to(dtype).item()
    assert filled(large, index, compat="authors") == [pytest.approx(expected, rel=1e-9)] * 420


def test_authors_mean_of_a_tensor_masked_entirely_is_zero() -> None:
    assert filled(torch.ones(3), [0, 1, 2], compat="authors") == [0.0] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_number_and_scale(dtype: torch.dtype) -> None:
    weight = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=dtype)
    assert filled(weight, [1, 3], fill="zero") == [0.0, 0.0]
    assert filled(weight, [1, 3], fill=-0.5) == [-0.5, -0.5]
    assert filled(weight, [1, 3], fill=("scale", 1.5)) == [-3.0, 6.0]
    assert filled(weight, [1, 3], fill="scale:0") == [0.0, 0.0]
    assert weight.tolist() == [1.0, -2.0, 3.0, 4.0]


def test_a_number_is_rounded_once() -> None:
    # 1 + 2^-8 + 2^-40 lies just above the middle of two bfloat16 numbers; by way of float32 it becomes the middle
    assert filled(torch.ones(2, dtype=torch.bfloat16), [0], fill=1 + 2**-8 + 2**-40) == [1 + 2**-7]


def test_noise_has_the_tensors_mean_and_std() -> None:
    weight = torch.randn(400, 200) * 3 + 7
    index = list(range(0, 80_000, 4))
    drawn = filled(weight, index, fill="noise")
    mean, std = weight.mean().item(), weight.std(correction=0).item()
    assert stats.kstest(drawn, "norm", (mean, std)).pvalue > 1e-4
    constant = torch.full((10,), 2.5)
    assert filled(constant, [3, 4], fill="noise") == [2.5, 2.5]


def test_noise_is_a_function_of_seed_and_name() -> None:
    base = torch.randn(50)

    def draws(names: list[str], seed: int) -> dict[str, list[float]]:
        tensors = {name: base.clone() for name in names}
        mask = SparseMask({n: torch.arange(5) for n in names}, {n: (50,) for n in names})
        with perturb(tensors, mask, fill="noise", seed=seed):
            return {name: tensors[name][:5].tolist() for name in names}

    first = draws(["a", "b"], 0)
    assert first == draws(["b", "a"], 0)
    assert first["a"] == draws(["a"], 0)["a"]
    assert first["a"] != first["b"]
    assert first["a"] != draws(["a"], 1)["a"]


@pytest.mark.parametrize("fill", ["mean", "noise"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_is_refused_by_name_and_nothing_is_written(fill: str, bad: float) -> None:
    tensors = {"layers.0.good": torch.tensor([1.0, 2.0]), "layers.1.bad": torch.tensor([1.0, bad])}
    mask = SparseMask({n: torch.tensor([0]) for n in tensors}, {n: (2,) for n in tensors})
    for compat in (None, "authors") if fill == "mean" else (None,):
        with pytest.raises(ValueError, match=r"layers\.1\.bad holds NaN or infinity"):
            perturb(tensors, mask, fill=fill, compat=compat).apply()
        assert tensors["layers.0.good"].tolist() == [1.0, 2.0] and tensors["layers.1.bad"][0] == 1.0


def test_a_tensor_masked_entirely_is_refused_by_name() -> None:
    target, mask = one(torch.ones(3), [0, 1, 2])
    with pytest.raises(ValueError, match=r"w is masked entirely \(3 entries\)"):
        perturb(target, mask).apply()
    with perturb(target, mask, fill="zero"):
        assert target["w"].tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_number_beyond_the_dtype_is_refused_by_name(dtype: torch.dtype, value: float) -> None:
    mask = SparseMask({"w": torch.tensor([1])}, {"w": (4,)})
    with pytest.raises(ValueError, match="values in w that are not finite"):
        perturb({"w": torch.ones(4, dtype=dtype)}, mask, fill=value).apply()


def test_a_number_is_held_against_what_it_rounds_to() -> None:
    mask = SparseMask({"w": torch.tensor([1])}, {"w": (4,)})
    weights = {"w": torch.ones(4, dtype=torch.float16)}
    with perturb(weights, mask, fill=65519.0):  # rounds to the largest number
        assert weights["w"][1] == 65504
    with pytest.raises(ValueError, match="values in w that are not finite"):
        perturb(weights, mask, fill=70000.0).apply()


def test_values_beyond_the_dtype_are_refused_by_name() -> None:
    half, mask = one(torch.tensor([60000.0, 1.0], dtype=torch.float16), [0])
    with pytest.raises(
        ValueError, match=r"fill scale:2 gives values in w that are not finite in torch\.float16"
    ):
        perturb(half, mask, fill="scale:2").apply()
    with pytest.raises(ValueError, match="fill 70000 gives values in w"):
        perturb(half, mask, fill=70000).apply()
    nan, mask = one(torch.tensor([math.nan, 1.0]), [0])
    with pytest.raises(ValueError, match="hold NaN"):
        perturb(nan, mask, fill="scale:2").apply()
    assert half["w"].tolist() == [60000.0, 1.0]
