from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tomfisher.masks import SparseMask
from tomfisher.masks.store import recorded_checksum

SHAPES = {"a.q": (3, 4), "a.k": (5,), "b.q": (2, 2, 2)}


def mask(entries: dict[str, list[int]], shapes: dict[str, tuple[int, ...]] = SHAPES, **rest) -> SparseMask:
    return SparseMask({n: torch.tensor(i, dtype=torch.int64) for n, i in entries.items()}, shapes, **rest)


def as_sets(m: SparseMask) -> dict[str, set[int]]:
    return {name: set(index.tolist()) for name, index in m.items()}


A = mask({"a.q": [0, 3, 11], "a.k": [4]}, kappa=0.1, scope="tensor", parents=["task"])
B = mask({"a.q": [3, 5], "b.q": [0, 7]}, kappa=0.1, scope="tensor", parents=["control"])


def test_a_mask_is_a_mapping_with_counts() -> None:
    assert list(A) == ["a.q", "a.k", "b.q"]
    assert A["a.q"].tolist() == [0, 3, 11] and A["b.q"].tolist() == []
    assert A.counts() == {"a.q": 3, "a.k": 1, "b.q": 0}
    assert (A.nnz, A.numel, A.density) == (4, 25, 4 / 25)
    assert SparseMask({}, {}).density == 0.0
    assert "4 of 25 entries in 3 tensors" in repr(A)


def test_dense_marks_the_row_major_positions() -> None:
    dense = A.dense("a.q")
    assert dense.shape == (3, 4) and dense.dtype == torch.bool
    assert dense.nonzero().tolist() == [[0, 0], [0, 3], [2, 3]]
    assert not A.dense("b.q").any() and A.dense("b.q").shape == (2, 2, 2)


ENTRIES = st.fixed_dictionaries(
    {n: st.sets(st.integers(0, torch.Size(s).numel() - 1)).map(sorted) for n, s in SHAPES.items()}
)
SOME_NAMES = st.sets(st.sampled_from(list(SHAPES)))


@settings(max_examples=80, deadline=None)
@given(ENTRIES, SOME_NAMES, ENTRIES, SOME_NAMES)
def test_set_algebra_equals_python_sets(left, left_names, right, right_names) -> None:
    a = mask({n: left[n] for n in left_names}, {n: SHAPES[n] for n in SHAPES if n in left_names})
    b = mask({n: right[n] for n in right_names}, {n: SHAPES[n] for n in SHAPES if n in right_names})
    x, y = as_sets(a), as_sets(b)
    for result, names, merge in (
        (a - b, set(x), lambda n: x[n] - y.get(n, set())),
        (a & b, set(x) & set(y), lambda n: x[n] & y[n]),
        (a | b, set(x) | set(y), lambda n: x.get(n, set()) | y.get(n, set())),
    ):
        assert as_sets(result) == {n: merge(n) for n in names}
        assert all(index.tolist() == sorted(index.tolist()) for index in result.values())
        assert result.shapes == {n: SHAPES[n] for n in names}


def test_algebra_keeps_a_common_kappa_and_says_where_it_comes_from() -> None:
    difference = A - B
    assert (difference.kappa, difference.scope) == (0.1, "tensor")
    (step,) = difference.parents
    assert step["operation"] == "difference"
    assert step["left"] == {"kappa": 0.1, "scope": "tensor", "nnz": 4, "parents": ["task"]}
    assert step["right"]["parents"] == ["control"]
    assert (A - mask({}, kappa=0.2, scope="model")).kappa is None


def test_algebra_refuses_other_shapes_and_other_things() -> None:
    other = mask({"a.q": [1]}, {"a.q": (4, 3)})
    for combine in (lambda: A - other, lambda: A & other, lambda: A | other):
        with pytest.raises(ValueError, match=r"shapes of 1 shared tensors differ.*\(3, 4\) and \(4, 3\)"):
            combine()
    with pytest.raises(TypeError):
        A - {"a.q": torch.tensor([1])}  # type: ignore[operator]


def test_equality_is_of_entries_and_shapes() -> None:
    assert mask({"a.q": [1]}) == mask({"a.q": [1]}, kappa=0.5, parents=["x"])
    assert mask({"a.q": [1]}) != mask({"a.q": [2]})
    assert mask({"a.q": [1]}, {"a.q": (3, 4)}) != mask({"a.q": [1]}, {"a.q": (4, 3)})
    assert mask({"a.q": [1]}, {"a.q": (3, 4)}) != mask({"a.q": [1]})
    assert (A == "mask") is False


def test_the_digest_is_of_names_and_entries_in_any_order() -> None:
    turned = mask({"b.q": [], "a.k": [4], "a.q": [0, 3, 11]}, dict(reversed(SHAPES.items())), kappa=0.5)
    assert A.sha256 == turned.sha256
    moved = [{"a.q": [0, 3, 10], "a.k": [4]}, {"a.q": [0, 3], "a.k": [4]}, {"b.q": [4], "a.q": [0, 3, 11]}]
    assert len({A.sha256, *(mask(entries).sha256 for entries in moved)}) == 4


def test_the_digest_is_read_from_the_file_and_nothing_else_has_one(tmp_path) -> None:
    A.save(tmp_path / "m.safetensors")
    assert recorded_checksum(tmp_path / "m.safetensors") == A.sha256
    (tmp_path / "text").write_text("no")
    assert recorded_checksum(tmp_path / "text") is None and recorded_checksum(tmp_path / "absent") is None


def test_restrict_by_pattern_patterns_and_function() -> None:
    assert list(A.restrict("*.q")) == ["a.q", "b.q"]
    assert A.restrict("*.q").counts() == {"a.q": 3, "b.q": 0}
    assert list(A.restrict(["b.*", "a.k"])) == ["a.k", "b.q"]
    assert list(A.restrict(lambda name: name.startswith("a"))) == ["a.q", "a.k"]
    assert A.restrict("*.q").parents[0]["patterns"] == "*.q"
    assert A.restrict("a.k").kappa == 0.1
    with pytest.raises(ValueError, match=r"matches '\*\.Q'.*a\.q, a\.k, b\.q"):
        A.restrict("*.Q")


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (torch.tensor([1, 0]), ValueError, "'a.q' must be strictly rising"),
        (torch.tensor([1, 1]), ValueError, "strictly rising"),
        (torch.tensor([-1, 2]), ValueError, "from 0 to 11, got -1 to 2"),
        (torch.tensor([0, 12]), ValueError, "from 0 to 11, got 0 to 12"),
        (torch.tensor([[1]]), ValueError, r"vector, got shape \(1, 1\)"),
        (torch.tensor([1], dtype=torch.int32), TypeError, "int64"),
    ],
)
def test_bad_positions_are_refused(index: torch.Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        SparseMask({"a.q": index}, SHAPES)


def test_a_tensor_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="it lacks c"):
        mask({"c": [0]})


def test_save_and_load_keep_everything(tmp_path) -> None:
    saved = A - B
    saved.save(tmp_path / "new" / "mask.safetensors")
    loaded = SparseMask.load(tmp_path / "new" / "mask.safetensors")
    assert loaded == saved
    assert list(loaded) == list(saved)
    assert (loaded.kappa, loaded.scope) == (saved.kappa, saved.scope)
    assert loaded.parents == saved.parents and loaded.shapes == saved.shapes
    assert all(index.dtype == torch.int64 for index in loaded.values())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mask.safetensors"]


def test_the_file_is_plain_safetensors_and_one_tensor_may_serve_two_names(tmp_path) -> None:
    index = torch.tensor([1, 2])
    twice = SparseMask({"x": index, "y": index}, {"x": (3,), "y": (3,), "z": (0,)})
    twice.save(tmp_path / "m.safetensors")
    assert {n: t.tolist() for n, t in load_file(tmp_path / "m.safetensors").items()} == {
        "x": [1, 2],
        "y": [1, 2],
        "z": [],
    }
    assert SparseMask.load(tmp_path / "m.safetensors") == twice


def rewritten(path, change) -> None:
    """Write a mask file again with its tensors or metadata changed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def header(change):
    def apply(metadata, tensors) -> None:
        value = json.loads(metadata["mask"])
        change(value)
        metadata["mask"] = json.dumps(value)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.pop("format"), "no mask"),
        (lambda m, t: m.update(version="2"), "format version 2, this tomfisher reads 1"),
        (lambda m, t: m.update(mask="{"), "unreadable header"),
        (lambda m, t: m.update(mask="[]"), "unreadable header"),
        (lambda m, t: t["a.q"].add_(1), "checksum differs"),
        (lambda m, t: t.pop("a.k"), "checksum differs"),
        (header(lambda h: h.pop("shapes")), "damaged"),
        (header(lambda h: h.pop("kappa")), "damaged"),
        (header(lambda h: h["shapes"].pop("a.q")), "lacks a.q"),
        (header(lambda h: h["shapes"].update({"a.q": [2, 2]})), "from 0 to 3"),
        (header(lambda h: h.update(shapes=3)), "damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path, change, message) -> None:
    path = tmp_path / "m.safetensors"
    A.save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        SparseMask.load(path)
    assert str(path) in str(caught.value)


def test_a_truncated_missing_or_foreign_file_is_refused(tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="No mask file"):
        SparseMask.load(path)
    A.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        SparseMask.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="no mask"):
        SparseMask.load(path)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "m.safetensors"
    A.save(path)
    before = path.read_bytes()

    def full(tensors, filename, metadata) -> None:
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        B.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
