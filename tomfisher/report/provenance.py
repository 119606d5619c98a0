"""Where a run's numbers come from, as tables, and the command that computes them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from tomfisher.report.data import RunData
from tomfisher.report.tables import ABSENT
from tomfisher.results.tables import Table

_SHORT = {
    "Model": "model.source",
    "Parameters": "model.num_parameters",
    "Weights, SHA-256": "model.weights_sha256",
    "Sensitivity": "fisher.task.definition.formula",
    "Task samples": "fisher.task.num_samples",
    "Control samples": "fisher.control.num_samples",
    "Answers by": "evaluation.method",
    "Seeds of the random masks": "seeds.random",
    "Processor": "machine.cpu",
    "Finished": "time.finished",
}
_VERSIONS = ("tomfisher", "torch", "transformers", "python")


def rerun(data: RunData) -> str:
    """The command that runs this study again."""
    return f"tomfisher run --config {_quoted(data.path / 'config.yaml')}"


def provenance_section_parts(data: RunData) -> tuple[list[str], list[Table], list[tuple[str, str]]]:
    """Paragraphs, tables and preformatted blocks of the section."""
    origin = data.results.provenance
    blocks = [
        ("Run it again", rerun(data)),
        ("Write this report again", f"tomfisher report {_quoted(data.path)}"),
    ]
    command = origin.get("command")
    if isinstance(command, list):
        blocks.append(("The command that first ran it", " ".join(map(_quoted, command))))
    texts = [] if origin else ["The results carry no provenance: the study did not finish."]
    tables = []
    if rows := _short(origin):
        tables.append(Table("The study in short.", ["What", "Value"], rows, (0, 1)))
    rows = [
        row
        for key, value in origin.items()
        if key not in ("config", "command")
        for row in _leaves(key, value)
    ]
    if rows:
        caption = "Model, data, definitions, machine and versions; hashes are SHA-256."
        tables.append(Table(caption, ["What", "Value"], rows, (0, 1), title="All that was recorded"))
    settings = [[key, shown(value)] for key, value in data.config.items()]
    if settings:
        caption = "Settings of the study (config.yaml)."
        tables.append(Table(caption, ["Setting", "Value"], settings, (0, 1), title="All settings"))
    return texts, tables, blocks


def _short(origin: Mapping[str, Any]) -> list[list[str]]:
    """The facts that one looks for first, as far as they are known."""
    known = {name: value for key, part in origin.items() for name, value in _leaves(key, part)}
    rows = [[label, known[name]] for label, name in _SHORT.items() if known.get(name, ABSENT) != ABSENT]
    versions = [f"{name} {known[key]}" for name in _VERSIONS if (key := f"versions.{name}") in known]
    return rows + ([["Versions", ", ".join(versions)]] if versions else [])


def _quoted(word: Any) -> str:
    return shlex.quote(str(word))


def _leaves(name: str, value: Any) -> list[list[str]]:
    """Nested facts as rows of dotted names and values."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _leaves(f"{name}.{key}", item)]
    return [[name, shown(value)]]


def shown(value: Any) -> str:
    """One value of a setting or fact."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
