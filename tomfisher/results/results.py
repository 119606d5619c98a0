"""The results of a study: its rows, where they come from, and the files they are written to."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tomfisher.evaluate.records import ALL
from tomfisher.evaluate.statistics import holm
from tomfisher.files import atomic_path
from tomfisher.results.held_out import HeldOut
from tomfisher.results.row import (
    BASELINE,
    COLUMNS,
    HEADLINE,
    RULE_COLUMNS,
    TASK_CONTROL,
    Row,
    grouped,
    rows_of,
    states_of,
)
from tomfisher.results.rule import PAPER, Rule
from tomfisher.text_files import read_json

RESULTS, ABLATIONS, FINETUNE, GRID = "results", "ablations", "finetune", "grid"
SWEEP_COLUMNS = (
    *("kappa", "mask", "seed", "nnz", "condition", "n", "accuracy", "ci95_low", "ci95_high"),
    *("p_vs_baseline", "perplexity", "word_perplexity"),
)
AGAIN = {
    RESULTS: "Run the study again",
    ABLATIONS: "Run `tomfisher ablate` again",
    FINETUNE: "Train again",
    GRID: "Run `tomfisher sweep` again",
}


@dataclass(frozen=True)
class Results:
    """What a study found, of whatever kind it is.

    Args:
        rows: those of the untouched model first, then state by state in the order of measurement.
        provenance: where the numbers come from.
        left_out: what could not be done, and why.
        conclusions: what the study says, in words, where that is part of its file.
        held_out: a mask chosen on one half of the scenes and measured on the other, of studies with masks of other
            rules than the paper's.
    """

    rows: tuple[Row, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    conclusions: tuple[str, ...] = ()
    held_out: HeldOut | None = None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions of the untouched model."""
        return tuple(row.condition for row in next(grouped(self.rows)))

    @property
    def headline(self) -> str:
        """The condition that the study is about: "false-belief" where the task has it, else "all"."""
        return HEADLINE if HEADLINE in self.conditions else ALL

    @property
    def tested(self) -> tuple[str, ...]:
        """The headline condition and all questions; one where they are the same."""
        return tuple(dict.fromkeys((self.headline, ALL)))

    @property
    def kappas(self) -> tuple[float, ...]:
        """The κ of the masks, rising."""
        return tuple(sorted({r.kappa for r in self.rows if r.mask != BASELINE and r.kappa is not None}))

    def select(self, **fields: Any) -> tuple[Row, ...]:
        """The rows with these values, such as `select(mask="random", condition="all")`."""
        return tuple(r for r in self.rows if all(getattr(r, name) == v for name, v in fields.items()))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that the masks were chosen by, in the order of measurement."""
        return tuple(dict.fromkeys(row.rule for row in self.rows if row.mask == TASK_CONTROL))

    def at(
        self, kappa: float, mask: str, condition: str | None = None, rule: Rule = PAPER
    ) -> tuple[Row, ...]:
        """The rows of one mask at one κ, on one condition (None: the headline): one, or one per seed."""
        return self.select(kappa=kappa, mask=mask, condition=condition or self.headline, rule=rule)

    def baseline(self, condition: str | None = None) -> Row:
        """The untouched model, on one condition (None: the headline)."""
        wanted = condition or self.headline
        return next(row for row in self.rows if row.condition == wanted)

    def rise(self, row: Row) -> float:
        """Relative change of the perplexity against the untouched model: 0.05 is five percent more."""
        base = self.rows[0].perplexity
        assert row.perplexity is not None and base is not None
        return row.perplexity / base - 1.0

    def to_dict(self) -> dict[str, Any]:
        """The content of the study's JSON file: `{"baseline": state, "points": [state, ...], "provenance": ...}`."""
        baseline, *points = states_of(self.rows)
        told = {
            "conclusions": list(self.conclusions),
            "left_out": self.left_out,
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
        }
        filled = {name: value for name, value in told.items() if value}
        return {"baseline": baseline, "points": points, **filled, "provenance": self.provenance}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Results:
        """Rebuild what `to_dict` gave, or an earlier version wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no such thing.
        """
        if "rows" in data:  # an earlier grid of fills
            rows = [Row(**{k: v for k, v in row.items() if k in COLUMNS}) for row in data["rows"]]
        else:
            states = data["states"] if "states" in data else [data["baseline"], *data["points"]]
            rows = [row for state in states for row in rows_of(state)]
        notes = dict(note.partition(": ")[::2] for note in data.get("notes", ()))  # an earlier finetune.json
        left_out, conclusions = data.get("left_out", notes), data.get("conclusions", ())
        held_out = None if data.get("held_out") is None else HeldOut.from_dict(data["held_out"])
        return cls(
            tuple(rows),
            dict(data.get("provenance") or {}),
            dict(left_out or {}),
            tuple(conclusions or ()),
            held_out,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str = RESULTS) -> Results:
        """Read a study's JSON file, or that of this name in a folder.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no such file.
        """
        file = Path(path) / f"{name}.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_dict(read_json(file))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a {name}.json of tomfisher ({error}). {AGAIN[name]}.") from error

    def save(self, folder: str | os.PathLike[str], name: str = RESULTS) -> None:
        """Write `NAME.json` and `NAME.csv` into a folder; `results.csv` has the columns of a sweep, others have all.

        Args:
            folder: where.
            name: "results", "ablations", "finetune" or "grid".
        """
        with atomic_path(Path(folder) / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        write_csv(self.rows, Path(folder) / f"{name}.csv", SWEEP_COLUMNS if name == RESULTS else COLUMNS)


def write_csv(rows: Iterable[Row], path: Path, columns: Sequence[str] = COLUMNS) -> None:
    """Write rows as CSV, all or nothing; None is an empty cell, several interventions are joined by "+".

    Behind the columns come those of the rule where some row has another than the paper's.
    """
    rows = list(rows)
    columns = (*columns, *(RULE_COLUMNS if any(row.rule != PAPER for row in rows) else ()))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(getattr(row, column)) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    return "+".join(value) if isinstance(value, tuple) else value


def corrected(rows: Iterable[Row], test: str = "p_vs_baseline") -> dict[Row, float]:
    """The p of each row after Holm's correction over all of them.

    Args:
        rows: tests of one family.
        test: the field that holds the p.
    """
    family = list(rows)
    return dict(zip(family, holm([getattr(row, test) for row in family]), strict=True))
