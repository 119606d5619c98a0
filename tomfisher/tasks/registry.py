"""Tasks by name: our own stories, the testbed language, or a user's file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tomfisher.tasks import formats
from tomfisher.tasks.generator import CONDITIONS, FAMILIES, SPLITS, generate
from tomfisher.tasks.records import JSON_SUFFIXES
from tomfisher.tasks.selection import POOL_OF_SPLIT, Unit, group_units, shuffle_balanced, take, unit_key
from tomfisher.tasks.story import SECOND_ORDER, Story

TESTBED = "testbed"
TESTBED_SECOND_ORDER = "testbed2"
_DESCRIPTIONS = {
    "false-belief": "contents and transfer stories, in equal parts",
    "contents": "unexpected contents: a closed container whose label may be wrong, with three controls",
    "transfer": "unexpected transfer: a thing that may be moved while its owner is away, with three controls",
    SECOND_ORDER: "beliefs about a belief: one moves a thing, the other learns of it unnoticed; four controls",
    TESTBED: "stories in the small language of the testbed models",
    TESTBED_SECOND_ORDER: "the same with second-order stories as a third family, for the testbed2 models",
}


def available() -> dict[str, str]:
    """List the built-in tasks.

    Returns:
        Name to one-line description.
    """
    return dict(_DESCRIPTIONS)


def load(
    name: str | os.PathLike[str], n: int | None = None, seed: int = 0, split: str = "evaluation"
) -> list[Story]:
    """Load stories by task name or from a file.

    Args:
        name: a name of `available()`, or the path of a JSON or JSON Lines file (`tomfisher.tasks.formats`).
        n: number of stories (questions), balanced over conditions; cells and direction pairs stay whole, and a count
            that would tear one is rounded up, with a warning. None for 640 (evaluation and balanced; second-order:
            600) or 200 (fisher) of a built-in task, and for all of a file.
        seed: which stories are taken.
        split: "evaluation"; "fisher": belief questions of the false-belief condition only, from a disjoint pool of
            frames, names, things and places; "balanced": every condition of that second pool, such as to train on.
            A file is cut into two halves that share no item (which half an item is in depends on nothing but the
            item), and if it has false-belief conditions, its Fisher half keeps only their belief questions
            ("balanced": all it has); "all" takes the whole file.

    Returns:
        Stories with unique ids.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: unknown name or split, malformed file, or `n` outside 1 to the number of stories.
    """
    label = os.fspath(name)
    if label == "false-belief":
        return generate(tuple(CONDITIONS), n, seed, split)
    if label in FAMILIES:
        return generate((label,), n, seed, split)
    if label in (TESTBED, TESTBED_SECOND_ORDER):
        from tomfisher.testbed import language

        second_order = label == TESTBED_SECOND_ORDER
        return language.stories(n=n, seed=seed, split=split, second_order=second_order)
    if isinstance(name, os.PathLike) or Path(label).suffix.lower() in JSON_SUFFIXES or Path(label).is_file():
        return _load_file(label, n, seed, split)
    raise ValueError(
        f"Unknown task {label!r}. Built-in tasks: {', '.join(_DESCRIPTIONS)}. "
        "Or give the path of a .json or .jsonl file."
    )


def _load_file(path: str, n: int | None, seed: int, split: str) -> list[Story]:
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split must be one of {', '.join((*SPLITS, 'all'))}, got {split!r}.")
    units = group_units(formats.read_stories(path))
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
