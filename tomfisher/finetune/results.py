"""What a comparison of trainings found, and the files it is written to."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tomfisher.experiment.results import HEADLINE
from tomfisher.files import atomic_path
from tomfisher.text_files import read_json

UNTOUCHED, START, MASKED, RANDOM, LORA = "untouched", "start", "masked", "random", "lora"
CSV_COLUMNS = [
    "state",
    "seed",
    "trainable",
    "learning_rate",
    "condition",
    "n",
    "accuracy",
    "ci95_low",
    "ci95_high",
    "p_vs_untouched",
    "p_vs_start",
    "p_vs_masked",
    "perplexity",
    "word_perplexity",
]


@dataclass(frozen=True)
class State:
    """One state of the model and what was measured in it.

    Args:
        name: "untouched"; "start", where training begins, if that is a damaged model; "masked", "random" or "lora".
        seed: of random entries or of LoRA's matrices, else None.
        trainable: number of trained values.
        learning_rate: the one chosen, or None.
        losses: validation loss per learning rate, in nats; None where the training diverged.
        train_loss: loss of the last step, in nats, or None.
        conditions: per condition `{"n", "n_scenes", "accuracy", "ci95": [low, high], "p_vs_untouched", "p_vs_start",
            "p_vs_masked"}`; two-sided p of the exact sign-flip test over scenes, None against itself or where
            there is no such state.
        perplexity: per token, on the held-out control text.
        word_perplexity: per word of the same text; None where it is beyond a float.
        about: what else there is to say, in words.
    """

    name: str
    seed: int | None
    trainable: int
    learning_rate: float | None
    losses: dict[str, float | None]
    train_loss: float | None
    conditions: dict[str, dict[str, Any]]
    perplexity: float
    word_perplexity: float | None
    about: str = ""

    def accuracy(self, condition: str) -> float:
        """Accuracy of one condition, in [0, 1]."""
        return float(self.conditions[condition]["accuracy"])

    def headline(self) -> str:
        """The condition that matters: "false-belief" where the task has it, else "all"."""
        return HEADLINE if HEADLINE in self.conditions else "all"


@dataclass(frozen=True)
class Comparison:
    """Masked entries, random entries and LoRA, trained on the same data for the same steps.

    Args:
        states: the untouched model first, then the start (if it differs), then every training that came to an end.
        notes: what could not be done, and why.
        provenance: settings, counts, data and where the numbers come from.
    """

    states: tuple[State, ...]
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def named(self, name: str) -> tuple[State, ...]:
        """The states of one name: none, one, or one per seed."""
        return tuple(state for state in self.states if state.name == name)

    @property
    def start(self) -> State:
        """The state from which every training begins."""
        return (self.named(START) or self.named(UNTOUCHED))[0]

    @property
    def trained(self) -> tuple[State, ...]:
        """The states after a training."""
        return tuple(state for state in self.states if state.name in (MASKED, RANDOM, LORA))

    def to_dict(self) -> dict[str, Any]:
        """The content of `finetune.json`."""
        return {
            "states": [asdict(state) for state in self.states],
            "notes": list(self.notes),
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Rebuild what `to_dict` gave."""
        states = tuple(State(**state) for state in data["states"])
        return cls(states, tuple(data["notes"]), dict(data["provenance"]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read `finetune.json`, or the folder that holds it.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no such file.
        """
        file = Path(path) / "finetune.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_dict(read_json(file))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no finetune.json of tomfisher ({error}). Train again.") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `finetune.json` and `finetune.csv` (one row per state and condition) into a folder."""
        with atomic_path(Path(folder) / "finetune.json") as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        with (
            atomic_path(Path(folder) / "finetune.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as handle,
        ):
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(CSV_COLUMNS)
            for state in self.states:
                writer.writerows(_rows(state))


def _rows(state: State) -> list[list[Any]]:
    return [
        [
            *(state.name, state.seed, state.trainable, state.learning_rate, condition),
            *(score["n"], score["accuracy"], *score["ci95"]),
            *(score["p_vs_untouched"], score["p_vs_start"], score["p_vs_masked"]),
            *(state.perplexity, state.word_perplexity),
        ]
        for condition, score in state.conditions.items()
    ]
