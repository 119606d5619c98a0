from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tomfisher.files import atomic_path, check_writable, sha256_of_file, sha256_of_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_at_the_end(tmp_path) -> None:
    target = tmp_path / "new" / "folder" / "result.json"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and not temporary.exists()
        temporary.write_text("complete")
        assert not target.exists()
    assert target.read_text() == "complete"
    assert names(target.parent) == ["result.json"]


def test_a_file_is_replaced(tmp_path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with atomic_path(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and names(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_inside_leaves_the_old_file_and_no_temporary(tmp_path, error) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with pytest.raises(error if isinstance(error, type) else OSError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["result"]


def test_an_error_before_anything_was_written(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="early"), atomic_path(tmp_path / "result"):
        raise RuntimeError("early")
    assert names(tmp_path) == []


def test_a_folder_replaces_a_folder(tmp_path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "gone.txt").write_text("old")
    with atomic_path(target) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "a.txt").write_text("new")
        assert names(target) == ["gone.txt"]
    assert names(target) == ["deep"] and (target / "deep" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["store"]


def test_an_error_inside_leaves_the_old_folder(tmp_path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")
    assert names(target) == ["kept.txt"] and names(tmp_path) == ["store"]


def test_an_error_while_the_folder_is_moved_leaves_the_old_folder(tmp_path, monkeypatch) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    real = Path.rename

    def rename(self, destination):
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return real(self, destination)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"), atomic_path(target) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["store"] and names(target) == ["kept.txt"]


def test_a_full_disk_at_the_flush_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    target = tmp_path / "result"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old" and names(tmp_path) == ["result"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target):
        pass
    assert target.read_text() == "old" and names(tmp_path) == ["result"]


def test_two_writers_do_not_share_a_temporary(tmp_path) -> None:
    target = tmp_path / "result"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the outer block ends last
    assert names(tmp_path) == ["result"]


def test_sha256_of_a_file_longer_than_one_block(tmp_path) -> None:
    data = bytes(range(256)) * 20_000
    (tmp_path / "data").write_bytes(data)
    assert sha256_of_file(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_sha256_of_texts_tells_boundaries_apart() -> None:
    assert sha256_of_text("ab", "c") != sha256_of_text("a", "bc") != sha256_of_text("abc")
    assert sha256_of_text("ä") == hashlib.sha256("2:ä".encode()).hexdigest()


@pytest.mark.parametrize("folder", [False, True])
def test_checking_a_place_makes_and_leaves_nothing(tmp_path, folder) -> None:
    check_writable(tmp_path / "new" / "deeper" / "x", folder)
    assert names(tmp_path) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("kept")
    check_writable(tmp_path / ("there" if folder else "file"), folder)
    assert names(tmp_path) == ["file", "there"] and (tmp_path / "file").read_text() == "kept"
    with pytest.raises(ValueError, match="is a file, not a folder" if folder else "is a folder, not a file"):
        check_writable(tmp_path / ("file" if folder else "there"), folder)
