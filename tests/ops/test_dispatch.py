from __future__ import annotations

import importlib
import warnings

import pytest
import torch

from tomfisher.ops import IMPLEMENTATIONS, dispatch, resolve

CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict:
    """An empty table, which no backend enters itself into."""
    entries: dict = {}
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.setattr(dispatch, "_table", entries)
    return entries


def enter(*names: str) -> None:
    for name in names:
        dispatch.register("op_", name)(lambda name=name: name)


def test_auto_prefers_the_fast_one_of_the_device(table: dict) -> None:
    enter("reference", "cpp", "triton")
    for device, expected in ((CPU, "cpp"), (CUDA, "triton"), (OTHER, "reference")):
        name, run = resolve("op_", "auto", device)
        assert (name, run()) == (expected, expected)


def test_auto_takes_the_reference_where_nothing_faster_is_registered(table: dict) -> None:
    enter("reference")
    assert [resolve("op_", "auto", device)[0] for device in (CPU, CUDA, OTHER)] == ["reference"] * 3


@pytest.mark.parametrize(
    ("device", "impl", "needed"), [(CPU, "cpp", "tomfisher._C"), (CUDA, "triton", "triton")]
)
def test_auto_says_once_what_is_missing_and_an_explicit_request_says_how_to_get_it(
    table: dict, monkeypatch: pytest.MonkeyPatch, device: torch.device, impl: str, needed: str
) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda module: False)
    dispatch._say_once.cache_clear()
    enter("reference")
    with pytest.warns(UserWarning, match=f"{needed} is not installed.*{impl}.*pip install"):
        assert resolve("op_", "auto", device)[0] == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("op_", "auto", device)[0] == "reference"
    dispatch._say_once.cache_clear()
    with pytest.raises(NotImplementedError, match=f"impl='{impl}' needs {needed}.*pip install"):
        resolve("op_", impl, device)


def test_an_implementation_is_imported_when_it_is_first_asked_for(
    table: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda module: True)
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", lambda name: (imported.append(name), enter("cpp")))
    enter("reference")
    assert resolve("op_", "auto", CPU)[0] == "cpp"
    assert imported == ["tomfisher.ops._backends.cpp"]


def test_an_explicit_request_is_kept_and_never_falls_back(table: dict) -> None:
    enter("reference", "cpp")
    assert resolve("op_", "reference", CPU)[0] == "reference"
    with pytest.raises(NotImplementedError, match=r"'triton' here \(it has: cpp, reference\)"):
        resolve("op_", "triton", CUDA)
    with pytest.raises(NotImplementedError, match=r"it has: none"):
        resolve("other_", "auto", CPU)


def test_an_unknown_name_is_refused(table: dict) -> None:
    enter("reference")
    with pytest.raises(ValueError, match=f"one of {', '.join(IMPLEMENTATIONS)}, got 'fast'"):
        resolve("op_", "fast", CPU)


@pytest.mark.parametrize(
    "op", ["squared_gradient_", "square_accumulate_", "topk", "masked_fill_mean_", "scatter_"]
)
def test_every_operation_has_a_reference(op: str) -> None:
    assert resolve(op, "reference", CPU)[0] == "reference"


def test_the_kernel_for_hopper_is_taken_by_name_alone_and_the_rest_is_triton_s() -> None:
    pytest.importorskip("triton")
    from tomfisher.kernels import squared_gradient_hopper

    assert resolve("squared_gradient_", "auto", CUDA)[0] == "triton"
    name, run = resolve("squared_gradient_", "triton-hopper", CUDA)
    assert name == "triton-hopper" and run is squared_gradient_hopper.squared_gradient
    assert dispatch.implementations("triton-hopper").keys() == dispatch.implementations("triton").keys()
    assert resolve("scatter_", "triton-hopper", CUDA)[1] is resolve("scatter_", "triton", CUDA)[1]
    with pytest.raises(NotImplementedError, match="needs CUDA tensors of a Hopper GPU"):
        resolve("squared_gradient_", "triton-hopper", CPU)
