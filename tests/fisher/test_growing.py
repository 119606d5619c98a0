"""A store that grows: the bytes of one that is written at once, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import FACTS, ODD, RUN, SHARD_BYTES, begin, files, grow, values
from processes import run_forks

from tomfisher import FisherDiagonal
from tomfisher.fisher import growing, shards, store
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.store import read_store, write_store


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a store that is written at once."""
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", SHARD_BYTES)
        write_store(values(ODD), FACTS, tmp_path / "at-once")
    return files(tmp_path / "at-once")


def test_the_same_bytes_as_written_at_once(tmp_path: Path, expected: dict[str, bytes]) -> None:
    grow(tmp_path / "grown")
    assert files(tmp_path / "grown") == expected and len(expected) > 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-once", "grown"]
    tensors = FisherDiagonal.load(tmp_path / "grown")
    assert list(tensors) == list(ODD)
    assert all(torch.equal(tensors[name], value) for name, value in values(ODD).items())


@pytest.mark.parametrize("shard_bytes", [1, 100, 10**9])
def test_headers_are_those_of_the_library(tmp_path: Path, shard_bytes: int) -> None:
    from safetensors.torch import save_file

    tensors = values(ODD)
    for file, shard in shards.lay_out(ODD, shard_bytes).shards.items():
        save_file({name: tensors[name] for name in shard.starts}, tmp_path / file, metadata=shards.METADATA)
        written = (tmp_path / file).read_bytes()
        assert written.startswith(shard.header) and len(written) == shard.size
        for name, start in shard.starts.items():
            assert written[start:].startswith(tensors[name].numpy().tobytes())


def test_rows_in_any_order(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, read = values(ODD), []
    monkeypatch.setattr(
        growing, "sha256_of_part", lambda *args: read.append(args) or shards.sha256_of_part(*args)
    )
    with begin(tmp_path / "grown") as grown:
        for name, tensor in tensors.items():
            if name == "large":  # the second half first
                grown.write(name, tensor[20:], slice(20, None))
                grown.write(name, tensor[:20], slice(0, 20))
            elif name == "experts":  # one after another, the last one twice
                grown.write(name, tensor[:1], slice(1))
                grown.commit("first expert")
                grown.write(name, torch.zeros(2, 4, 5), slice(1, 3))
                grown.write(name, tensor[1:], slice(1, 3))
            elif tensor.ndim and len(tensor):
                for row in range(len(tensor)):
                    grown.write(name, tensor[row : row + 1], slice(row, row + 1))
            else:
                grown.write(name, tensor)
        grown.finish(FACTS)
    assert files(tmp_path / "grown") == expected
    assert len(read) == 2  # large and experts; the rest was hashed as it was written


def test_a_stale_hash_is_not_taken_up_again(tmp_path: Path, expected: dict[str, bytes]) -> None:
    tensors = values(ODD)
    with begin(tmp_path / "grown") as grown:
        for name, tensor in tensors.items():
            if tensor.numel():
                grown.write(name, tensor)
        grown.write("large", torch.zeros(20, 25), slice(20))
        grown.write("large", tensors["large"])
        grown.write("large", tensors["large"][20:], slice(20, 40))
        grown.finish(FACTS)
    assert files(tmp_path / "grown") == expected


def test_a_store_is_replaced_at_the_end(tmp_path: Path, expected: dict[str, bytes]) -> None:
    write_store({"old": torch.ones(3)}, FACTS, tmp_path / "grown")
    before = files(tmp_path / "grown")
    with begin(tmp_path / "grown"):
        assert files(tmp_path / "grown") == before
    grow(tmp_path / "grown")
    assert files(tmp_path / "grown") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-once", "grown"]


def test_an_unfinished_store_is_no_store(tmp_path: Path) -> None:
    with begin(tmp_path / "grown") as grown:
        grown.write("large", values(ODD)["large"])
        grown.commit("large")
    with pytest.raises(FileNotFoundError, match=r"is not finished. .*grown.unfinished: run the command"):
        read_store(tmp_path / "grown")
    with pytest.raises(FileNotFoundError, match="No Fisher store"):
        read_store(tmp_path / "grown.other")
    store.check_target(tmp_path / "grown")
    with pytest.raises(FileExistsError, match="not a Fisher store"):
        store.check_target(tmp_path / "grown.unfinished")


def test_what_was_not_committed_is_written_again(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with begin(tmp_path / "grown") as grown:
        grown.write("large", values(ODD)["large"])
        grown.commit("large", {"gradient": torch.arange(6.0).bfloat16().reshape(2, 3)})
        grown.write("experts", torch.full((3, 4, 5), 7.0))
    with begin(tmp_path / "grown") as grown:
        assert grown.done == ["large"]
        assert torch.equal(grown.carried["gradient"], torch.arange(6.0).bfloat16().reshape(2, 3))
        for name in list(ODD):
            if name != "large" and name != "experts":
                grown.write(name, values(ODD)[name])
        with pytest.raises(ValueError, match=r"1 of 8 tensors are not wholly written, such as 'experts'"):
            grown.finish(FACTS)
        with pytest.raises(ValueError, match=r"Rows 0 to 40 of 'large' .* a step that is done"):
            grown.write("large", torch.zeros(40, 25))
        grown.write("experts", values(ODD)["experts"])
        grown.commit("rest")
        assert grown.carried == {}
        grown.finish(FACTS)
    assert files(tmp_path / "grown") == expected


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    begin(tmp_path / "grown").close()
    left = files(tmp_path / "grown.unfinished")
    for run, shapes, match in (
        ({**RUN, "seed": 1}, ODD, r"differs in seed \(0 there, 1 here\)\. Continue"),
        ({**RUN, "more": None}, ODD, r"differs in more"),
        ({"model": "llama", "data": "abc"}, ODD, r"differs in seed"),
        (RUN, {**ODD, "large": (40, 26)}, r"differs in parameters"),
        (RUN, dict(reversed(ODD.items())), r"differs in parameters"),
    ):
        with pytest.raises(ValueError, match=match):
            begin(tmp_path / "grown", run, shapes)
    with pytest.raises(ValueError, match=r"differs in shard_bytes \(300 there, 999 here\)"):
        GrowingStore.begin(tmp_path / "grown", ODD, RUN, shard_bytes=999)
    assert files(tmp_path / "grown.unfinished") == left
    grow(tmp_path / "grown")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with begin(tmp_path / "grown"), pytest.raises(ValueError, match="Another tomfisher process"):
        begin(tmp_path / "grown")
    grow(tmp_path / "grown")


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda d: _flip(d / "journal.safetensors", -1), r"checksum differs. Delete the folder"),
        (lambda d: (d / "journal.safetensors").write_bytes(b"x"), "damaged or no safetensors file"),
        (lambda d: (d / "store" / FIRST).unlink(), "is missing. Delete .*unfinished, and start"),
        (lambda d: _flip(d / "store" / FIRST, 20), "header of .* is not the one it was made with. Delete"),
        (lambda d: os.truncate(d / "store" / FIRST, 100), "has 100 bytes, not the"),
        (lambda d: shutil.rmtree(d / "store"), "store is missing. Delete"),
        (lambda d: (d / "thesis.tex").touch(), "holds thesis.tex, which is no part"),
    ],
)
def test_damage_is_said(tmp_path: Path, damage: Any, match: str) -> None:
    with begin(tmp_path / "grown") as grown:
        grown.write("large", values(ODD)["large"])
        grown.commit("large", {"gradient": torch.ones(3)})
    damage(tmp_path / "grown.unfinished")
    left = files(tmp_path)
    with pytest.raises((ValueError, OSError), match=match):
        begin(tmp_path / "grown")
    assert files(tmp_path) == left


FIRST = next(iter(shards.lay_out(ODD, SHARD_BYTES).shards))


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    with begin(tmp_path / "grown") as grown:
        for name, tensor, rows, match in (
            ("other", torch.ones(3), None, "has no tensor 'other'"),
            ("large", torch.ones(40, 25, dtype=torch.float64), None, "must be float32, got torch.float64"),
            ("large", torch.ones(40, 24), None, r"got \(40, 24\)"),
            ("large", torch.ones(3, 25), slice(38, 41), r"rows 38 to 40 have \(2, 25\), got \(3, 25\)"),
            ("large", torch.ones(20, 25), slice(0, 40, 2), "must be a range"),
            ("scalar", torch.ones(()), slice(0, 1), "must be a range"),
        ):
            with pytest.raises((ValueError, TypeError), match=match):
                grown.write(name, tensor, rows)
        grown.commit("nothing")
        with pytest.raises(ValueError, match="done already"):
            grown.commit("nothing")
    with pytest.raises(ValueError, match=r"is closed\. Begin it again"):
        grown.commit("late")


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of `fsync` take minutes on a disk, and a kill loses none."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def killed(how: str, folder: Path, expected: Path) -> int:
    """Run a function of `killed_runs` in a process of its own; how many of its runs died."""
    code = f"from killed_runs import *\nprint({how}(Path({str(folder)!r}, 'grown'), files(Path({str(expected)!r}))))"
    (done,) = run_forks(expected.parent, code)
    assert done.code == 0, done.out + done.err
    return int(done.out)


@pytest.mark.slow
@pytest.mark.usefixtures("expected")
def test_killed_at_every_call_that_touches_the_disk(tmp_path: Path, quick_disk: Path) -> None:
    assert killed("at_every_call", quick_disk, tmp_path / "at-once") > 50


@pytest.mark.slow
@pytest.mark.usefixtures("expected")
def test_killed_at_random_moments(tmp_path: Path, quick_disk: Path) -> None:
    assert killed("at_random", quick_disk, tmp_path / "at-once") >= 25


def test_a_disk_too_small_is_said_before_the_work(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    huge = {f"layers.{i}.weight": (free // 40, 1) for i in range(11)}
    with pytest.raises(OSError, match=r"the store needs [\d,]+ bytes there, and [\d,]+ are free") as caught:
        GrowingStore.begin(tmp_path / "grown", huge, RUN)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="the store needs"):
        begin(tmp_path / "grown", spare=2 * free)
    assert not list(tmp_path.iterdir())
    begin(tmp_path / "grown").close()
    with pytest.raises(OSError, match="the store needs"):
        begin(tmp_path / "grown", spare=2 * free)
    grow(tmp_path / "grown")


LIMITED = """
import os, resource
from pathlib import Path
import killed_runs
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]), resource.RLIM_INFINITY))
try:
    killed_runs.grow(Path("grown"), carried=5000)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "match"),
    [
        (2000, "the store needs"),  # the largest shard does not fit
        (
            12_000,
            r"what was done up to the last commit is kept in .*grown.unfinished",
        ),  # the journal does not
    ],
)
def test_files_that_cannot_grow(tmp_path: Path, expected: dict[str, bytes], limit: int, match: str) -> None:
    (done,) = run_forks(tmp_path, LIMITED, [{"LIMIT": str(limit)}])
    assert re.search(match, done.out), done.out + done.err
    grow(tmp_path / "grown")
    assert files(tmp_path / "grown") == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, expected: dict[str, bytes]) -> None:
    begin(small_disk / "grown").close()
    other = small_disk / "other"
    other.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match=r"[Nn]o space left .* the same run goes on from there"):
        grow(small_disk / "grown", carried=5000)
    begin(small_disk / "grown").close()
    other.unlink()
    grow(small_disk / "grown")
    assert files(small_disk / "grown") == expected


def test_a_disk_without_room_is_left_as_it_was(small_disk: Path) -> None:
    with pytest.raises(OSError, match="the store needs") as caught:
        GrowingStore.begin(small_disk / "grown", {"large": (100_000,)}, RUN)
    assert caught.value.errno == errno.ENOSPC
    assert not list(small_disk.iterdir())


def test_what_a_kill_leaves_of_a_journal_is_removed(tmp_path: Path, expected: dict[str, bytes]) -> None:
    begin(tmp_path / "grown").close()
    left = [".tmpYqSxlT", ".journal.safetensors.1a2b3c4d.tmp"]  # of safetensors, and of `atomic_path`
    for name in left:
        (tmp_path / "grown.unfinished" / name).touch()
    with begin(tmp_path / "grown"):
        assert not {*left} & {path.name for path in (tmp_path / "grown.unfinished").iterdir()}
    grow(tmp_path / "grown")
    assert files(tmp_path / "grown") == expected


def test_what_was_begun_can_be_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with begin(path) as store:
        store.commit("a step", facts={"found": 1})
    with begin(path, {"seed": 1}, anew=True) as store:
        assert store.done == [] and store.facts == {}
        store.commit("a step")
        store.abandon()
    assert list(tmp_path.iterdir()) == []
