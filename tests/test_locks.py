from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import warnings

import pytest

from tomfisher import locks
from tomfisher.results.folder import RunFolder
from tomfisher.studies.claim import claimed
from tomfisher.studies.config import Config


def test_a_folder_is_locked_once_and_free_again(tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with (
            locks.locked(tmp_path),
            pytest.raises(ValueError, match="Another tomfisher process is working in"),
            locks.locked(tmp_path),
        ):
            pass
        with locks.locked(tmp_path):
            pass


@pytest.mark.parametrize("open_folder", ["run", "others"])
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_where_there_are_no_locks_a_file_stands_for_one(tmp_path, monkeypatch, open_folder, code) -> None:
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    config = Config(model="m", output_path=str(tmp_path))

    def opened():
        return claimed(config) if open_folder == "run" else RunFolder(tmp_path).opened()

    with opened() as folder:
        assert folder.path == tmp_path
        with pytest.raises(ValueError, match="Another tomfisher process is working in"), opened():
            pass
    with opened():
        pass


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_a_refusal(tmp_path, monkeypatch, code) -> None:
    def flock(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="Another tomfisher process"), locks.locked(tmp_path):
        pass


def test_a_system_without_fcntl_locks_by_a_file(tmp_path) -> None:
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from tomfisher.locks import locked\n"
        f"with locked({str(tmp_path)!r}):\n"
        "    try:\n"
        f"        with locked({str(tmp_path)!r}): pass\n"
        "    except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout.startswith("Another tomfisher process is working in")
        and not (tmp_path / ".lock").exists()
    )


def test_a_lock_may_be_waited_for_and_lie_elsewhere(tmp_path) -> None:
    """Two processes that make the same cached folder."""
    file, made = tmp_path / "lock", tmp_path / "made"
    code = (
        "import sys, pathlib; from tomfisher.locks import locked\n"
        f"made = pathlib.Path({str(made)!r})\n"
        f"print('asks', flush=True)\n"
        f"with locked(made, {str(file)!r}, wait=True): print(made.exists())"
    )
    with locks.locked(made, file, wait=True):
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "asks\n"
        made.mkdir()
    assert other.communicate()[0] == "True\n" and list(made.iterdir()) == []
