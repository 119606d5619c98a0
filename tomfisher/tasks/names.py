"""Persons of the stories: one pool of names for evaluation, another for Fisher samples."""

from __future__ import annotations

from dataclasses import dataclass

CASTS_PER_FILLING = 4


@dataclass(frozen=True)
class NamePool:
    """Eight women and eight men, so that any protagonist can have a friend of the other pronoun."""

    women: tuple[str, ...]
    men: tuple[str, ...]

    @property
    def all(self) -> frozenset[str]:
        """Every name of the pool."""
        return frozenset(self.women + self.men)


EVALUATION_NAMES = NamePool(
    women=("Clara", "Julia", "Laura", "Emma", "Alice", "Rosa", "Vera", "Olivia"),
    men=("Hugo", "Victor", "Oscar", "Martin", "Daniel", "Simon", "Felix", "Peter"),
)
FISHER_NAMES = NamePool(
    women=("Hannah", "Ruth", "Beth", "Monica", "Naomi", "Teresa", "Helen", "Karen"),
    men=("Leo", "Noah", "Arthur", "Louis", "Paul", "Frank", "George", "Walter"),
)


def roles(pool: NamePool, frame: int, filling: int, cast: int) -> dict[str, str]:
    """Choose protagonist and friend for one filling of one frame.

    They are of different sexes, so that "he" and "she" always have one reading, and no two of the
    `CASTS_PER_FILLING` casts of a filling share a protagonist.

    Args:
        pool: where the names come from.
        frame: index of the frame.
        filling: index of the filling.
        cast: 0 to `CASTS_PER_FILLING - 1`.

    Returns:
        Values for the placeholders `name`, `friend`, `he`, `He`, `him`, `his`.
    """
    woman = pool.women[(3 * frame + filling + 2 * cast) % len(pool.women)]
    man = pool.men[(frame + 5 * filling + 3 * cast + 1) % len(pool.men)]
    if (frame + filling + cast) % 2:
        return {"name": man, "friend": woman, "he": "he", "He": "He", "him": "him", "his": "his"}
    return {"name": woman, "friend": man, "he": "she", "He": "She", "him": "her", "his": "her"}
