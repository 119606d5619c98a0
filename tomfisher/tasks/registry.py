"""Tasks by name: our own stories, what is registered, a user's file, or published data."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tomfisher import plugins
from tomfisher.near_miss import unknown
from tomfisher.tasks import formats
from tomfisher.tasks.generator import FIRST_ORDER, SPLITS, generate
from tomfisher.tasks.records import JSON_SUFFIXES
from tomfisher.tasks.selection import POOL_OF_SPLIT, Unit, group_units, shuffle_balanced, take, unit_key
from tomfisher.tasks.story import SECOND_ORDER, Story


class Task(NamedTuple):
    """A named task: one line about it, and its stories by `n`, `seed` and `split` of `load`."""

    description: str
    stories: Callable[[int | None, int, str], list[Story]]


_TASKS = {
    name: Task(description, functools.partial(generate, families))
    for name, families, description in (
        ("false-belief", FIRST_ORDER, "contents and transfer stories, in equal parts"),
        (
            "contents",
            ("contents",),
            "unexpected contents: a closed container whose label may be wrong, with three controls",
        ),
        (
            "transfer",
            ("transfer",),
            "unexpected transfer: a thing that may be moved while its owner is away, with three controls",
        ),
        (
            SECOND_ORDER,
            (SECOND_ORDER,),
            "beliefs about a belief: one moves a thing, the other learns of it unnoticed; four controls",
        ),
    )
}


def register(name: str, description: str, stories: Callable[[int | None, int, str], list[Story]]) -> None:
    """Add a task.

    Args:
        name: what `load` is to know it by.
        description: one line.
        stories: called with `n`, `seed` and `split` of `load`.
    """
    _TASKS[name] = Task(description, stories)


def available() -> dict[str, str]:
    """List the tasks that have a name.

    Returns:
        Name to one-line description.
    """
    plugins.load()
    return {name: task.description for name, task in _TASKS.items()}


def load(
    name: str | os.PathLike[str], n: int | None = None, seed: int = 0, split: str = "evaluation"
) -> list[Story]:
    """Load stories by task name or from a file.

    Args:
        name: a name of `available()`, the path of a JSON or JSON Lines file (`tomfisher.tasks.formats`), or
            "FORMAT:SOURCE" for published data, such as "bigtom:data/bigtom.csv" (`tomfisher.tasks.formats.FORMATS`).
        n: number of stories (questions), balanced over conditions; cells and direction pairs stay whole, and a count
            that would tear one is rounded up, with a warning. None for 640 (evaluation and balanced; second-order:
            600) or 200 (fisher) of a built-in task, and for all of a file.
        seed: which stories are taken.
        split: "evaluation"; "fisher": belief questions of the false-belief condition only, from a disjoint pool of
            frames, names, things and places; "balanced": every condition of that second pool, such as to train on.
            A file is cut into two halves, equal but for one item, that share no item (by the order of the items'
            hashes, whatever the seed and the order in the file), and if it has false-belief conditions, its Fisher half
            keeps only their belief questions ("balanced": all it has); "all" takes the whole file.

    Returns:
        Stories with unique ids.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name or split, malformed file, or `n` outside 1 to the number of stories.
    """
    label = os.fspath(name)
    known = available()
    if label in known:
        return _TASKS[label].stories(n, seed, split)
    if _is_path(name) or formats.format_of(label):
        return _load_file(label, n, seed, split)
    raise ValueError(_unknown(label, known))


def from_file(name: str | os.PathLike[str]) -> bool:
    """Whether `load` reads the stories from a file or a data set, which holds so many and no more."""
    label = os.fspath(name)
    return label not in available() and (_is_path(name) or formats.format_of(label) is not None)


def _is_path(name: str | os.PathLike[str]) -> bool:
    label = os.fspath(name)
    if formats.format_of(label):
        return False
    return (
        isinstance(name, os.PathLike) or Path(label).suffix.lower() in JSON_SUFFIXES or Path(label).is_file()
    )


def _unknown(label: str, known: dict[str, str]) -> str:
    kind, colon, _ = label.partition(":")
    if kind in formats.FORMATS:
        return f"{kind} is a format of published data. Give {kind}:FILE: {formats.FORMATS[kind].needs}."
    if colon:
        return unknown("format", kind, formats.FORMATS)
    return f"{unknown('task', label, known)} Or give the path of a .json or .jsonl file, or FORMAT:FILE."


def _load_file(path: str, n: int | None, seed: int, split: str) -> list[Story]:
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split must be one of {', '.join((*SPLITS, 'all'))}, got {split!r}.")
    kind = formats.format_of(path)
    stories = formats.read_published(kind, path.partition(":")[2]) if kind else formats.read_stories(path)
    units = group_units(stories)
    chosen = units if split == "all" else _half(units, split, path)
    if n is not None:
        chosen = shuffle_balanced(chosen, seed)
    return take(chosen, n, path if split == "all" else f"the {split} split of {path}")


def _half(units: list[Unit], split: str, path: str) -> list[Unit]:
    """Give the items with even (evaluation) or odd (Fisher, balanced) rank in the order of their hashes."""
    items = sorted({_item_key(unit) for unit in units}, key=lambda key: hashlib.sha256(key.encode()).digest())
    if len(items) < 2:
        raise ValueError(
            f"{path} holds one item, which cannot be cut into a Fisher half and an evaluation half. "
            'Add items, or use split="all".'
        )
    kept = set(items[0::2] if POOL_OF_SPLIT[split] == "evaluation" else items[1::2])
    half = [unit for unit in units if _item_key(unit) in kept]
    if split == "fisher" and any(_is_false_belief(story) for unit in units for story in unit):
        half = [wanted for unit in half if (wanted := [story for story in unit if _is_false_belief(story)])]
        if not half:
            raise ValueError(
                f"{path}: no false-belief story falls into the Fisher half. Add items with that condition."
            )
    return half


def _item_key(unit: Unit) -> str:
    """What two stories must not share when one is for Fisher samples and one for evaluation."""
    parts = unit_key(unit[0]).split("/")
    return "/".join(parts[:3]) if len(parts) == 5 else unit[0].story


def _is_false_belief(story: Story) -> bool:
    return story.kind == "belief" and story.condition.rsplit("/", 1)[-1] == "false-belief"
