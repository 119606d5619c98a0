"""General English that every Python has: the documentation strings of the standard library, and of packages beside it.

A model that is trained on stories alone forgets the rest of the language; this text is trained on beside them.
Documents that stand as a whole in CPython's language reference, by which perplexity is judged, are left out; single
sentences may be in both.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sysconfig
from pathlib import Path

from tomfisher.tasks import corpus

# whose descriptions are prose, and which are installed wherever models are trained
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "huggingface-hub",
    "tokenizers",
    "peft",
    "gguf",
    "filelock",
)
SHORTEST = 400  # characters of a document


def documents() -> list[str]:
    """Long documentation strings of the standard library's modules, and the packages' descriptions."""
    reference = corpus.load(corpus.PYTHON_REFERENCE).text
    texts = [*_docstrings(Path(sysconfig.get_path("stdlib"))), *_descriptions()]
    kept = (text.strip() for text in texts)
    return [text for text in dict.fromkeys(kept) if len(text) >= SHORTEST and text not in reference]


def _docstrings(folder: Path) -> list[str]:
    """Of every module of a folder, its classes and functions; the files are parsed, not run."""
    found = []
    for path in sorted([*folder.glob("*.py"), *folder.glob("[a-z]*/*.py")]):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # one that is meant to be broken
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return found


def _descriptions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(importlib.metadata.metadata(package).json.get("description", ""))
        except importlib.metadata.PackageNotFoundError:
            continue
    return [str(text) for text in found]
