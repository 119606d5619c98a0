"""Modules that bring tasks, texts and models of their own: imported when somebody asks for one by name.

A registry does not know who adds to it, so that `tasks` and `models` stand below the packages that do; those of
tomfisher are named here.
"""

from __future__ import annotations

import importlib

_MODULES = ["tomfisher.testbed.registration"]


def add(module: str) -> None:
    """Have a module imported before the first answer of a registry.

    Args:
        module: its full name; importing it calls `tomfisher.tasks.registry.register`,
            `tomfisher.tasks.corpus.register` or `tomfisher.models.builtin.register`.
    """
    if module not in _MODULES:
        _MODULES.append(module)


def load() -> None:
    """Import what was added; the second time nothing happens."""
    for module in _MODULES:
        importlib.import_module(module)
