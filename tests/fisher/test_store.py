"""Stores: exact round trip, readable by others, and every kind of damage said."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tomfisher
from tomfisher import FisherDiagonal
from tomfisher.files import sha256_of_file
from tomfisher.fisher import shards, store


@pytest.fixture
def fisher(tiny: SimpleNamespace) -> FisherDiagonal:
    return tomfisher.fisher_diagonal(tiny.model("llama-gqa"), tiny.samples(3), params="all", progress=False)


def test_round_trip_keeps_every_bit_and_every_fact(fisher: FisherDiagonal, tmp_path: Path) -> None:
    fisher.save(tmp_path / "store")
    again = FisherDiagonal.load(tmp_path / "store")
    assert list(again) == list(fisher)
    assert all(torch.equal(again[n], fisher[n]) for n in fisher)
    assert (again.num_samples, again.num_tokens) == (3, fisher.num_tokens)
    assert again.methods == fisher.methods and again.metadata == fisher.metadata
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_stores_that_say_roads_load(fisher: FisherDiagonal, tmp_path: Path) -> None:
    fisher.save(tmp_path / "store")
    _edit(tmp_path / "store" / "fisher.json", lambda record: record.update(roads=record.pop("methods")))
    again = FisherDiagonal.load(tmp_path / "store")
    assert again.methods == fisher.methods and again.metadata == fisher.metadata
    with pytest.warns(FutureWarning, match="called methods now"):
        assert again.roads == fisher.methods


def test_stores_with_one_checksum_a_shard_load(fisher: FisherDiagonal, tmp_path: Path) -> None:
    fisher.save(tmp_path / "store")
    shard = tmp_path / "store" / "model.safetensors"
    whole = {"sha256": sha256_of_file(shard), "bytes": shard.stat().st_size}
    _edit(
        tmp_path / "store" / "fisher.json",
        lambda record: record.update(format=1, shards={shard.name: whole}),
    )
    again = FisherDiagonal.load(tmp_path / "store")
    assert all(torch.equal(again[n], fisher[n]) for n in fisher)
    assert again.metadata == fisher.metadata
    _flip(shard)
    with pytest.raises(ValueError, match=r"model.safetensors does not have its recorded SHA-256"):
        FisherDiagonal.load(tmp_path / "store")


def test_the_index_is_what_hugging_face_writes(
    fisher: FisherDiagonal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    fisher.save(tmp_path / "store")
    index = json.loads((tmp_path / "store" / "model.safetensors.index.json").read_text())
    assert set(index) == {"metadata", "weight_map"}
    assert index["metadata"]["total_size"] == sum(F.numel() * 4 for F in fisher.values())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for shard in files:
        for name, value in load_file(tmp_path / "store" / shard).items():
            assert index["weight_map"][name] == shard and torch.equal(value, fisher[name])
    assert all(torch.equal(FisherDiagonal.load(tmp_path / "store")[n], fisher[n]) for n in fisher)


def test_out_saves_what_is_returned(tiny: SimpleNamespace, tmp_path: Path) -> None:
    F = tomfisher.fisher_diagonal(
        tiny.model("llama-gqa"), tiny.samples(2), out=tmp_path / "s", progress=False
    )
    saved = FisherDiagonal.load(tmp_path / "s")
    assert all(torch.equal(saved[n], F[n]) for n in F)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _named(index: dict[str, Any], name: str, file: str) -> None:
    index["weight_map"][name] = file


def _shard(record: dict[str, Any]) -> dict[str, Any]:
    return record["shards"]["model.safetensors"]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda d: _flip(d / "model.safetensors"), "does not have its recorded SHA-256"),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-8]),
            "bytes, its",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda d: (d / "fisher.json").unlink(), "not a complete Fisher store"),
        (lambda d: (d / "fisher.json").write_text('{"format": 1,'), "not valid JSON"),
        (lambda d: (d / "fisher.json").write_text('{"format": 99}'), "has format 99"),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "index.json is missing"),
        (lambda d: (d / "fisher.json").write_text("[1]"), "no JSON object but a list"),
        (lambda d: _edit(d / "fisher.json", lambda r: r.pop("shards")), "no usable 'shards': None"),
        (lambda d: _edit(d / "fisher.json", lambda r: r.pop("num_samples")), "no usable 'num_samples'"),
        (
            lambda d: _edit(d / "fisher.json", lambda r: _shard(r).pop("bytes")),
            "no size and",
        ),
        (
            lambda d: _edit(d / "fisher.json", lambda r: _shard(r).pop("sha256_header")),
            "no checksums of the tensors",
        ),
        (
            lambda d: _edit(d / "fisher.json", lambda r: _shard(r).update(sha256_header="0" * 64)),
            "header does not have its recorded SHA-256",
        ),
        (
            lambda d: _edit(d / "fisher.json", lambda r: _shard(r)["sha256"].popitem()),
            "does not have its recorded SHA-256",
        ),
        (
            lambda d: _edit(d / "model.safetensors.index.json", lambda r: r.pop("weight_map")),
            "no usable 'weight_map'",
        ),
        (
            lambda d: _edit(d / "model.safetensors.index.json", lambda r: r["weight_map"].popitem()),
            "does not name it",
        ),
        (
            lambda d: _edit(
                d / "model.safetensors.index.json", lambda r: _named(r, "another", "model.safetensors")
            ),
            "'another' do not fit: no shard holds it",
        ),
        (
            lambda d: _edit(
                d / "model.safetensors.index.json", lambda r: _named(r, "another", "../x.safetensors")
            ),
            "no shard holds it",
        ),
    ],
)
def test_damage_is_said(fisher: FisherDiagonal, tmp_path: Path, damage: object, match: str) -> None:
    fisher.save(tmp_path / "store")
    damage(tmp_path / "store")  # type: ignore[operator]
    with pytest.raises(ValueError, match=match):
        FisherDiagonal.load(tmp_path / "store")


def test_no_store_and_no_overwriting_of_something_else(fisher: FisherDiagonal, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No Fisher store at"):
        FisherDiagonal.load(tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a Fisher store, so it is left alone"):
        fisher.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


LIMITED = """
import resource, signal, sys, torch
from tomfisher.files import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    write_tensors({"w": torch.zeros(100_000)}, sys.argv[1], {"format": "pt"})
except OSError as error:
    print(error)
"""


def test_a_file_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    """By a limit of the process: safetensors would replace a device such as /dev/full by a file."""
    path = tmp_path / "w.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert f"{path} could not be written" in done.stdout


@pytest.mark.parametrize("kept", ["store", "store/fisher.json", "store/model.safetensors"])
def test_a_read_only_store_is_left_alone(fisher: FisherDiagonal, tmp_path: Path, kept: str) -> None:
    fisher.save(tmp_path / "store")
    before = {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()}
    (tmp_path / kept).chmod(0o555)
    with pytest.raises(PermissionError, match=r"is read-only .*chmod -R u"):
        fisher.save(tmp_path / "store")
    assert {file.name: file.read_bytes() for file in (tmp_path / "store").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["store"]
    (tmp_path / kept).chmod(0o755)
    fisher.save(tmp_path / "store")


def test_a_full_disk_leaves_the_old_store(
    fisher: FisherDiagonal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fisher.save(tmp_path / "store")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        fisher.save(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert all(torch.equal(FisherDiagonal.load(tmp_path / "store")[n], fisher[n]) for n in fisher)


def test_the_sum_of_two_stores_is_that_of_their_tensors(fisher: FisherDiagonal, tmp_path: Path) -> None:
    fisher.save(tmp_path / "a")
    stored = FisherDiagonal.load(tmp_path / "a")
    three = stored + stored + stored
    assert three.num_samples == 9 and three.shapes == fisher.shapes
    three.save(tmp_path / "stored")
    (fisher + fisher + fisher).save(tmp_path / "held")
    for file in (tmp_path / "held").iterdir():
        assert (tmp_path / "stored" / file.name).read_bytes() == file.read_bytes()


SUM = """
import resource
from tomfisher import FisherDiagonal
from tomfisher.fisher import shards
shards.SHARD_BYTES = 40 * 2**20  # two tensors a shard
a, b = FisherDiagonal.load("a"), FisherDiagonal.load("b")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(a + b).save("sum")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_the_sum_of_two_stores_takes_memory_for_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40 * 2**20)
    for name in ("a", "b"):
        F = {f"layers.{i}.weight": torch.rand(2048, 2048) for i in range(16)}
        FisherDiagonal(F, num_samples=1, num_tokens=1, methods={}).save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", SUM], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit <= 112 * 2**20  # a shard, and some tensors; each store holds 256 MiB
