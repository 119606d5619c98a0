"""The pages a newcomer reads: their links lead somewhere, and the README is short and does what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tomfisher.cli.main import build_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(ROOT / f"{d}/README.md" for d in ("benchmarks", "kernels", "csrc")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_glossary_has_at_most_twenty_entries() -> None:
    entries = re.findall(r"^\| \*\*", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 10 < len(entries) <= 20


def commands() -> list[str]:
    """The lines of the console blocks that call tomfisher, without their comments."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    consoles = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return re.findall(r"^\$ tomfisher (.*?)(?: #.*)?$", consoles, re.MULTILINE)


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one_of_the_command_line(command: str) -> None:
    build_parser().parse_args(shlex.split(command))


@pytest.mark.slow
def test_the_python_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    """Accuracies of 20 questions may differ by one question on another processor, masks by a few entries."""
    text = README.read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    # the text below the block says what the untouched model scores
    code += (
        "score = tomfisher.evaluate.score(model, tokenizer, questions).by_group()['transfer/false-belief']\n"
    )
    code += "print(f'{score.accuracy:.2f}')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *lines, untouched = done.stdout.splitlines()
    assert untouched == re.search(r"untouched model scores (\d\.\d\d)", text)[1]  # type: ignore[index]
    assert [words(line) for line in lines] == [words(line) for line in printed.splitlines()]
    for line, expected in zip(lines, printed.splitlines(), strict=True):
        (nnz, accuracy), (nnz_said, accuracy_said) = figures(line), figures(expected)
        assert nnz == pytest.approx(nnz_said, rel=0.01)
        assert accuracy == pytest.approx(accuracy_said, abs=0.051)


def words(line: str) -> list[str]:
    return re.findall(r"[a-z]+", line)


def figures(line: str) -> tuple[float, float]:
    nnz, accuracy = re.search(r"(\d+) weights.*accuracy (\d\.\d+)", line).groups()  # type: ignore[union-attr]
    return float(nnz), float(accuracy)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    """In backticks, from the root, from the package or from beside a file named before in the same entry."""
    for entry in re.split(r"\n(?=- |\| |\d\. )", (ROOT / page).read_text(encoding="utf-8")):
        folders = [ROOT, ROOT / "tomfisher"]
        for name in re.findall(r"`([\w/.]+)`", entry):
            found = [folder / name for folder in folders if (folder / name).exists()]
            if name.endswith(".py") and "NAME" not in name:
                assert found, f"{name} in: {entry}"
            folders += [path if path.is_dir() else path.parent for path in found]
