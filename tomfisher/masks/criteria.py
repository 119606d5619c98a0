"""What ranks the weights of a model: the Fisher diagonal, and what else is used in its place.

Each criterion is one function of what is known about one tensor (`Known`), its definition in its docstring. They are
for comparison: the same masks, controls and statistics, another order of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tomfisher.near_miss import nearest

if TYPE_CHECKING:
    from torch import Tensor

FISHER = "fisher"
OF_STORES = ("fisher", "other", "quantile")  # what Fisher stores alone give
SMALLEST = 2.0**-149  # of the positive float32 numbers


@dataclass(frozen=True)
class Known:
    """What is known about one tensor on one of the two sets of texts; what a criterion does not need may be None.

    Attributes:
        fisher: Σ_n g_n², its Fisher diagonal on these texts.
        other: its Fisher diagonal on the other texts.
        quantile: of `ratio`.
        weight: its values.
        gradient: Σ_n g_n, the gradient of the sum of these texts' losses.
        input_norm: root of the sum of squares, over the texts' tokens, of the input that each weight multiplies,
            broadcastable to its shape.
        change: what the fill would add to each weight.
    """

    fisher: Tensor | None = None
    other: Tensor | None = None
    quantile: float = 0.5
    weight: Tensor | None = None
    gradient: Tensor | None = None
    input_norm: Tensor | None = None
    change: Tensor | None = None


Score = Callable[..., "Tensor"]


@dataclass(frozen=True)
class Criterion:
    """One way to rank weights.

    Attributes:
        name: as `--criterion` takes it.
        formula: in one line.
        needs: fields of `Known` that the score takes, in the order of its arguments.
        subtracts: whether the task's mask leaves out what the control's ranking selects.
        score: the function.
    """

    name: str
    formula: str
    needs: tuple[str, ...]
    subtracts: bool
    score: Score

    @property
    def reads_texts(self) -> bool:
        """Whether the ranking depends on texts at all, so that there is one of the task and one of the control."""
        return self.needs != ("weight",)

    def __call__(self, known: Known) -> Tensor:
        """The score of every entry of a tensor: the larger, the sooner it is chosen.

        Args:
            known: with all fields that the criterion needs.

        Returns:
            float32 or float64, of the tensor's shape, at least 0.

        Raises:
            ValueError: a field that it needs is missing.
        """
        values = [getattr(known, field) for field in self.needs]
        if missing := [field for field, value in zip(self.needs, values, strict=True) if value is None]:
            raise ValueError(f"The criterion {self.name} needs {', '.join(missing)} of the tensor, got None.")
        return self.score(*values)


_CRITERIA: dict[str, Criterion] = {}


def _criterion(
    name: str, formula: str, needs: Sequence[str], subtracts: bool = True
) -> Callable[[Score], Score]:
    def register(score: Score) -> Score:
        _CRITERIA[name] = Criterion(name, formula, tuple(needs), subtracts, score)
        return score

    return register


@_criterion(FISHER, "F", ["fisher"])
def fisher(F: Tensor) -> Tensor:
    """F_i = Σ_n g_{n,i}², the paper's: squares of one sample's gradient, summed."""
    return F


@_criterion("ratio", "F_task / (F_control + quantile)", ["fisher", "other", "quantile"], subtracts=False)
def ratio(F: Tensor, other: Tensor, quantile: float) -> Tensor:
    """F_i / (F'_i + q), in float64: what one set of texts needs more than the other does.

    q is the quantile, taken of the entries of F' in this tensor that are above zero: the ⌊quantile · (n - 1)⌋-th
    smallest of n, counted from 0. It keeps weights that hardly matter to either from winning by a small denominator.
    Where F' is zero throughout, q is the smallest positive float32.
    """
    reached = other[other > 0].flatten()
    place = int(quantile * (reached.numel() - 1)) + 1
    q = reached.kthvalue(place).values.item() if reached.numel() else SMALLEST
    return F.double() / (other.double() + q)


@_criterion("magnitude", "|w|", ["weight"], subtracts=False)
def magnitude(weight: Tensor) -> Tensor:
    """|w_i|: the largest weights, whatever the texts."""
    return weight.abs()


@_criterion("taylor", "|G w|", ["weight", "gradient"])
def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w_i Σ_n g_{n,i}|: the first-order change of the summed loss if the weight became 0.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), equation 8, not squared.
    """
    return (weight.float() * gradient).abs()


@_criterion("batch-gradient", "(sum of g)^2", ["gradient"])
def batch_gradient(gradient: Tensor) -> Tensor:
    """(Σ_n g_{n,i})²: the square of the batch's gradient, often taken for the Fisher diagonal by mistake."""
    return gradient.double().square()


@_criterion("fill", "F delta^2", ["fisher", "change"])
def fill(F: Tensor, change: Tensor) -> Tensor:
    """F_i δ_i²: twice the second-order change of the loss by this weight's own fill, with F in place of the Hessian.

    δ_i is what the study's fill adds to the weight; for the mean, with the mean of the whole tensor.
    """
    return F.double() * change.double().square()


@_criterion("obd", "F w^2", ["fisher", "weight"])
def obd(F: Tensor, weight: Tensor) -> Tensor:
    """F_i w_i²: twice the second-order change of the loss if the weight became 0, with F in place of the Hessian.

    Source: LeCun, Denker and Solla, Optimal Brain Damage (NIPS 1989), equation 5, without the half.
    """
    return F.double() * weight.double().square()


@_criterion("wanda", "|w| ||x||", ["weight", "input_norm"])
def wanda(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|w_ij| ‖x_j‖: a weight times the norm of the input that it multiplies, over all tokens of the texts.

    Compared within whatever the scope is, not within each output as its authors do.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024).
    """
    return weight.float().abs() * input_norm


NAMES = tuple(_CRITERIA)


def get(name: str | None) -> Criterion:
    """The criterion of a name; None is the Fisher diagonal.

    Raises:
        ValueError: there is none of that name.
    """
    name = name or FISHER
    if name not in _CRITERIA:
        close = nearest(name, NAMES)
        meant = f" Did you mean {close!r}?" if close else ""
        raise ValueError(f"criterion must be one of {', '.join(NAMES)}, got {name!r}.{meant}")
    return _CRITERIA[name]


class Scored(Mapping[str, "Tensor"]):
    """The scores of a model's tensors, each computed when it is asked for, so that `rank` holds one at a time.

    Args:
        criterion: what scores.
        names: of the tensors.
        known: gives what is known about a tensor of that name.
    """

    def __init__(self, criterion: Criterion, names: Sequence[str], known: Callable[[str], Known]) -> None:
        self.criterion = criterion
        self._names = tuple(names)
        self._known = known

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self.criterion(self._known(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def definition(self) -> dict[str, str]:
        """What the values are, for the provenance of a mask."""
        return {"criterion": self.criterion.name, "formula": self.criterion.formula}
