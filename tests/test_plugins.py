"""Packages that bring tasks, texts and models of their own, imported when somebody asks for one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MINE = """
from tomfisher.models import builtin
from tomfisher.tasks import corpus, registry
from tomfisher.tasks.story import Story

STORY = Story("a b .", "where ?", ("c", "d"), 0, "mine/all", 1, "mine/1")
registry.register("mine", "one story", lambda n, seed, split: [STORY])
corpus.register("my-text", lambda: ["one text", "another"])
builtin.register("my-model", "a folder", lambda: __import__("pathlib").Path("nowhere"))
"""
ASKED = """
import sys, tomfisher
from tomfisher import plugins
plugins.add("mine")
assert not any(name in sys.modules for name in ("mine", "tomfisher.tasks", "tomfisher.testbed"))
from tomfisher.models.builtin import available
assert tomfisher.tasks.load("mine")[0].id == "mine/1" and "mine" in tomfisher.tasks.available()
assert tomfisher.tasks.corpus.load("my-text").documents == ["one text", "another"]
assert list(available())[-1] == "my-model" and {"testbed-llama", "smollm2-135m"} <= available().keys()
"""


def test_what_a_plugin_registers_is_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASKED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
