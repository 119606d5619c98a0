"""`Rule`: by which criterion a mask of a study ranks the weights, and how much it leaves to the control."""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """How the mask of a κ is chosen; `PAPER` is the paper's way.

    Attributes:
        criterion: what ranks the weights, a name of `tomfisher.masks.criteria`; None is the Fisher diagonal.
        control_kappa: fraction of the control's ranking that the mask leaves alone; None is the mask's own κ, or
            nothing where the criterion subtracts nothing.
    """

    criterion: str | None = None
    control_kappa: float | None = None

    def named(self, mask: str, kappa: float) -> str:
        """A mask of this rule at one κ as a file is named after it: "task-control-0.001-without-0.01"."""
        first = "" if self.criterion is None else f"{self.criterion}-"
        last = "" if self.control_kappa is None else f"-without-{self.control_kappa!r}"
        return f"{first}{mask}-{kappa!r}{last}"

    def __str__(self) -> str:
        criterion = self.criterion or "fisher"
        return criterion if self.control_kappa is None else f"{criterion}, control {self.control_kappa:g}"


PAPER = Rule()
