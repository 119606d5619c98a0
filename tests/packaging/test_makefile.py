from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not (ROOT / "Makefile").is_file() or shutil.which("make") is None, reason="a checkout and make"
)
@pytest.mark.parametrize("there", [(), ("chromium",), ("chromedriver",), ("chromium", "chromedriver")])
def test_the_browser_is_installed_unless_it_and_its_driver_are_there(tmp_path, there):
    programs = {"apt-get": f'echo "$@" >> {tmp_path}/asked', "id": "echo 0", **dict.fromkeys(there, ":")}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [shutil.which("make"), "--silent", "-C", str(ROOT), "browser"]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
    assert ("chromium-driver" in asked) == (len(there) < 2)
