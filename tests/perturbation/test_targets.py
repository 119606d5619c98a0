from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from tomfisher.masks import SparseMask
from tomfisher.perturbation import perturb
from tomfisher.perturbation.targets import _beside, resolve_targets


def mask_for(tensors: dict[str, Tensor], entries: dict[str, list[int]]) -> SparseMask:
    return SparseMask(
        {n: torch.tensor(i) for n, i in entries.items()}, {n: tuple(tensors[n].shape) for n in entries}
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_parameters_are_written_once_at_the_union() -> None:
    model = Tied()
    weight = model.embed.weight.detach()
    before = weight.clone()
    named = dict(model.named_parameters(remove_duplicate=False))
    mask = mask_for(named, {"embed.weight": [0, 4], "head.weight": [4, 9]})
    with perturb(model, mask) as perturbation:
        assert perturbation.nnz == 3
        keep = [i for i in range(15) if i not in (0, 4, 9)]
        expected = before.view(-1)[keep].double().mean().float()
        assert torch.equal(weight.view(-1)[[0, 4, 9]], expected.expand(3))
    assert torch.equal(weight, before)
    with perturb(model, mask, fill="scale:2"):  # written twice it would be times 4
        assert weight.view(-1)[4] == 2 * before.view(-1)[4]


def test_either_name_of_a_tied_weight_is_known() -> None:
    model = Tied()
    for name in ("embed.weight", "head.weight"):
        with perturb(model, SparseMask({name: torch.tensor([2])}, {name: (5, 3)}), fill="zero"):
            assert model.embed.weight[0, 2] == 0


def test_two_parameters_over_one_storage_are_written_once_also_transposed() -> None:
    base = torch.randn(4, 3)
    before = base.clone()
    tensors = {"a": nn.Parameter(base), "b": nn.Parameter(base.view(4, 3)), "c": nn.Parameter(base.t())}
    # row-major position 1 of the [3, 4] transpose is base[1, 0], position 3 of base
    mask = mask_for(tensors, {"a": [3], "b": [3, 5], "c": [1, 11]})
    (target,) = resolve_targets(tensors, mask)
    assert target.names == ("a", "b", "c") and target.index.tolist() == [3, 5, 11]
    with perturb(tensors, mask, fill="scale:2") as perturbation:
        assert perturbation.nnz == 3
        expected = before.view(-1).clone()
        expected[[3, 5, 11]] *= 2
        assert torch.equal(base.view(-1), expected)
    assert torch.equal(base, before)


def test_nesting_knows_that_tied_names_are_one_memory() -> None:
    model = Tied()
    first = perturb(model, SparseMask({"embed.weight": torch.tensor([2])}, {"embed.weight": (5, 3)})).apply()
    second = perturb(model, SparseMask({"head.weight": torch.tensor([2])}, {"head.weight": (5, 3)})).apply()
    with pytest.raises(RuntimeError, match="cannot be undone yet"):
        first.undo()
    second.undo()
    first.undo()


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.t(),
        lambda w: w.permute(2, 0, 1) if w.ndim == 3 else w.t(),
        lambda w: w[:, ::2],
        lambda w: w.t()[1:, 1:],
        lambda w: w[1:],
    ],
)
def test_layouts_use_row_major_positions_of_the_tensor_itself(make) -> None:
    weight = make(torch.randn(6, 8))
    before = weight.clone()
    index = [0, 2, 5, weight.numel() - 1]
    tensors = {"w": weight}
    expected = before.flatten()
    for fill, want in (("zero", torch.zeros(4)), ("scale:2", expected[index] * 2)):
        with perturb(tensors, mask_for(tensors, {"w": index}), fill=fill):
            assert torch.equal(weight.flatten()[index], want)
            others = [i for i in range(weight.numel()) if i not in index]
            assert torch.equal(weight.flatten()[others], expected[others])
        assert torch.equal(weight, before)
    with perturb(tensors, mask_for(tensors, {"w": index})):
        kept = [i for i in range(weight.numel()) if i not in index]
        assert weight.flatten()[index[1]].item() == pytest.approx(expected[kept].mean().item(), abs=1e-6)


def test_a_three_dimensional_permuted_tensor() -> None:
    weight = torch.randn(2, 3, 4).permute(2, 0, 1)
    before = weight.clone()
    tensors = {"w": weight}
    with perturb(tensors, mask_for(tensors, {"w": [1, 7, 23]}), fill=9.0):
        assert (weight == 9.0).flatten().nonzero().flatten().tolist() == [1, 7, 23]
    assert torch.equal(weight, before)


def test_separate_slices_of_one_storage_are_separate_weights() -> None:
    fused = torch.randn(4, 6)
    before = fused.clone()
    tensors = {"q": fused[:, :3], "k": fused[:, 3:]}
    with perturb(tensors, mask_for(tensors, {"q": [0], "k": [0]}), fill="zero") as perturbation:
        assert perturbation.nnz == 2 and fused[0, 0] == fused[0, 3] == 0
    assert torch.equal(fused, before)


def test_overlapping_views_that_meet_in_an_entry_are_refused() -> None:
    fused = torch.randn(4, 6)
    tensors = {"whole": fused, "part": fused[1:]}
    with pytest.raises(ValueError, match=r"whole, part are different views that overlap"):
        perturb(tensors, mask_for(tensors, {"whole": [6], "part": [0]}))
    perturb(tensors, mask_for(tensors, {"whole": [6], "part": [1]}))


def test_a_mask_of_another_model_is_refused_with_the_first_few_names() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    names = [f"x{i}" for i in range(6)]
    with pytest.raises(
        ValueError,
        match=r"names 6 of 7 tensors that are not there: x0, x1, x2, x3 and 2 more.*which has a, b",
    ):
        perturb(tensors, SparseMask({}, {n: (1,) for n in ["a", *names]}))
    with pytest.raises(
        ValueError, match=r"Shapes of 1 tensors differ: a \(3, 2\) in the mask, \(2, 3\) here"
    ):
        perturb(tensors, SparseMask({}, {"a": (3, 2), "b": (4,)}))


def test_unsuitable_tensors_are_refused_by_name() -> None:
    def refused(tensor: Tensor, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            perturb({"layer.w": tensor}, SparseMask({"layer.w": torch.tensor([0])}, {"layer.w": (2, 2)}))

    refused(
        torch.ones(2, 2, device="meta"), ValueError, r"'layer\.w' is on the meta device.*Load the weights"
    )
    refused(torch.ones(2, 2, dtype=torch.int8), TypeError, r"'layer\.w' has dtype torch\.int8")
    refused(torch.ones(2, 2).to(torch.float8_e4m3fn), TypeError, "without quantisation")
    refused(torch.ones(2, 2).to_sparse(), TypeError, r"layout torch\.sparse_coo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop these
        quantized = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    refused(quantized, TypeError, "without quantisation")
    refused(torch.ones(1).expand(2, 2), ValueError, r"'layer\.w' is an expanded view")


def test_another_kind_of_target_is_refused() -> None:
    mask = SparseMask({}, {})
    with pytest.raises(TypeError, match=r"torch\.nn\.Module or a mapping.*got Tensor"):
        perturb(torch.ones(2), mask)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'w' must be a tensor, got list"):
        perturb({"w": [1.0]}, SparseMask({}, {"w": (1,)}))  # type: ignore[dict-item]


def test_positions_go_to_their_tensors_device_together(monkeypatch) -> None:
    tensors = {"a": torch.empty(4, device="meta"), "b": torch.ones(3), "c": torch.empty(5, device="meta")}
    mask = SparseMask(
        {"a": torch.tensor([0, 3]), "b": torch.tensor([1]), "c": torch.tensor([2])},
        {"a": (4,), "b": (3,), "c": (5,)},
    )
    transfers = []
    real = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **k: transfers.append(self) or real(self, *a, **k)
    )
    moved = _beside(tensors, mask)
    assert [(n, i.device.type, len(i)) for n, i in moved.items()] == [
        ("a", "meta", 2),
        ("b", "cpu", 1),
        ("c", "meta", 1),
    ]
    assert [sent.tolist() for sent in transfers] == [[0, 3, 2]]
