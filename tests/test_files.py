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


def test_an_error_while_the_folder_is_moved_leaves_the_old_folder_and_keeps_the_new(
    tmp_path, monkeypatch
) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    real = Path.rename

    def rename(self, destination):
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return real(self, destination)

    monkeypatch.setattr(Path, "rename", rename)
    kept = pytest.raises(OSError, match="Input/output error; the finished result is kept in ")
    with kept as caught, atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new.txt").write_text("new")
    assert names(target) == ["kept.txt"] and names(temporary) == ["new.txt"]
    assert str(temporary) in str(caught.value) and len(names(tmp_path)) == 2


def test_a_file_that_cannot_be_renamed_is_kept(tmp_path, monkeypatch) -> None:
    def fixed(self, destination):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", fixed)
    kept = pytest.raises(OSError, match="the finished result is kept in ")
    with kept as caught, atomic_path(tmp_path / "result") as temporary:
        temporary.write_text("measured for hours")
    assert str(temporary) in str(caught.value) and temporary.read_text() == "measured for hours"


@pytest.mark.parametrize("length", [241, 242, 255])
@pytest.mark.parametrize("letter", ["x", "信"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, length, letter, folder) -> None:
    target = tmp_path / (letter * (length // len(letter.encode())))
    check_writable(target, folder)
    with atomic_path(target) as temporary:
        (temporary.mkdir if folder else temporary.touch)()
    assert names(tmp_path) == [target.name]
    check_writable(target, folder, replaced=folder)
    with pytest.raises(ValueError, match=r"cannot be written: File name too long.*--output_path"):
        check_writable(tmp_path / ("x" * 256), folder)
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_and_what_it_names_is_written(tmp_path, exists) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    if exists:
        real.write_text("old")
    link.symlink_to(real)
    check_writable(link)
    assert real.exists() == exists
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and real.read_text() == "new" and names(tmp_path) == ["link.json", "real.json"]


def test_devices_and_pipes_are_no_results(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    reader, writer = os.pipe()
    for place in ("/dev/null", tmp_path / "pipe", tmp_path / "link", f"/dev/fd/{writer}"):
        for folder in (False, True):
            with pytest.raises(ValueError, match="a device or a pipe"):
                check_writable(place, folder)
    os.close(reader), os.close(writer)
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize(("place", "says"), [("", "is empty"), (" ", "is empty"), ("new/", "names a folder")])
def test_a_path_that_names_no_file_is_refused(tmp_path, monkeypatch, place, says) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        check_writable(place)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("folder", "replaced"), [(False, False), (True, True)])
def test_a_mount_point_cannot_be_replaced(tmp_path, monkeypatch, folder, replaced) -> None:
    target = tmp_path / "mounted"
    (target.mkdir if folder else target.touch)()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    with pytest.raises(ValueError, match=r"mounted cannot be written: it is a mount point"):
        check_writable(target, folder, replaced)
    if folder:
        check_writable(target, folder)  # written into, not replaced
    assert names(tmp_path) == ["mounted"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_of_another_user_in_a_shared_folder_cannot_be_replaced(tmp_path, monkeypatch, folder) -> None:
    target = tmp_path / "theirs"
    (target.mkdir if folder else target.touch)()
    tmp_path.chmod(0o1777)
    check_writable(target, folder, replaced=folder)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ValueError, match="another user's, in a shared folder"):
        check_writable(target, folder, replaced=folder)


@pytest.mark.parametrize("step", ["write_bytes", "replace", "mkdir"])
@pytest.mark.parametrize("folder", [False, True])
def test_every_step_of_the_write_is_rehearsed(tmp_path, monkeypatch, step, folder) -> None:
    def fails(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, step, fails)
    if step == "mkdir" and not folder:
        check_writable(tmp_path / "x", folder)
    else:
        with pytest.raises(ValueError, match="x cannot be written: No space left on device"):
            check_writable(tmp_path / "x", folder)
    assert names(tmp_path) == []


def test_a_flush_that_the_file_system_does_not_know_is_let_be(tmp_path, monkeypatch) -> None:
    def unknown(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unknown)
    check_writable(tmp_path / "x")
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("there")
    assert (tmp_path / "x").read_text() == "there"


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
