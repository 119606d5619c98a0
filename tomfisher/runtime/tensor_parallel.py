"""Models whose weights transformers has split over the ranks by its own plans: tensor parallel, experts over ranks.

Every rank runs the same forwards. What a module is given and gives is a plain tensor, of which a rank may have a part;
what a rank holds of each weight is a `Part`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tomfisher.runtime.parts import Part, part_of
from tomfisher.runtime.ranks import Team, current
from tomfisher.runtime.sharded import is_sharded
from tomfisher.runtime.structure import FUSED_QUERY_KEY, SEPARATE_QUERY_KEY

# of transformers' `distributed.tensor_parallel` and `expert_parallel`, what is tried against one process
STYLES = {
    *("colwise", "colwise_rep", "colwise_gather_output", "rowwise", "rowwise_rep", "rowwise_split_input"),
    *("packed_colwise", "packed_rowwise", "embedding_rowwise", "replicate"),
    *("moe_tp_experts", "grouped_gemm", "ep_dispatch_experts"),
    "replicated_with_grad_allreduce",
}
_QUERY_KEY = (*SEPARATE_QUERY_KEY, *FUSED_QUERY_KEY)
PARTIAL = "replicated_with_grad_allreduce"


@dataclass(frozen=True)
class Split:
    """How the parameters of a model are split over ranks that all run the same forwards.

    Attributes:
        team: the ranks.
        parts: what this rank holds of a parameter, by `id`; all of those that are not listed.
        partial: `id` of parameters that every rank holds whole, and of whose gradient each has a summand.
    """

    team: Team
    parts: Mapping[int, Part] = field(default_factory=dict)
    partial: frozenset[int] = frozenset()

    def part(self, parameter: Tensor) -> Part | None:
        """What this rank holds of a parameter; None for all of it."""
        return self.parts.get(id(parameter))

    def shape(self, parameter: Tensor) -> tuple[int, ...]:
        """Shape of what this rank holds of a parameter."""
        part = self.part(parameter)
        return tuple(parameter.shape) if part is None else part.local_shape

    def local(self, gradient: Any, parameter: Any) -> Tensor:
        """This rank's part of a parameter's gradient, which autograd may have placed in another way."""
        if not is_sharded(gradient):
            return gradient
        local: Tensor = gradient.redistribute(placements=parameter.placements).to_local()
        return local

    def total(self, parameter: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What makes the whole of this rank's summand of a gradient; None where each rank has the whole."""
        return _summed if id(parameter) in self.partial else None

    def union(self, step: str, names: Iterable[str]) -> set[str]:
        """The names that any rank gives."""
        return {name for given in self.team.exchange(step, sorted(names)) for name in given}

    def least(self, step: str, number: int) -> int:
        """The smallest number that any rank gives."""
        return min(self.team.exchange(step, number))

    @property
    def is_split(self) -> bool:
        """Whether ranks have to take the same way through everything."""
        return self.team.size > 1


WHOLE = Split(Team())


class Together(Team):
    """Ranks that run the same forwards, each of which takes part in all of them.

    Args:
        team: the ranks.
    """

    def __init__(self, team: Team) -> None:
        super().__init__(team._board)

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """As `Team.call`; the model's own exchanges that break off say which rank has ended, too."""
        with super().call(name), self.exchanging():
            yield

    def share(self, weights: Sequence[int]) -> list[int]:
        """All indices."""
        return list(range(len(weights)))

    def merged(self, step: str, count: int, own: Mapping[int, Any]) -> list[Any]:
        """What this rank has, which is everything."""
        return [own[i] for i in range(count)]


def team_for(model: Any) -> Team:
    """The team that runs a model: its ranks share the forwards, or each takes part in all where the model is split.

    Raises:
        ValueError: the model is split over ranks, and this process is alone.
    """
    team = current()
    if not is_tensor_parallel(model):
        return team
    if team.size == 1:
        raise ValueError(
            f"{type(model).__name__} is split over ranks, and this process works alone. Make the call on every rank, "
            "outside of `tomfisher.runtime.ranks.alone()`."
        )
    return Together(team)


def is_tensor_parallel(model: Any) -> bool:
    """Whether transformers has split the model's weights over ranks (`from_pretrained(distributed_config=...)`)."""
    config = getattr(getattr(model, "config", None), "distributed_config", None)
    sizes = (getattr(config, name, 1) or 1 for name in ("tp_size", "ep_size"))
    return config is not None and max(sizes) > 1 and any(map(is_sharded, model.parameters()))


def split_of(model: nn.Module, team: Team) -> Split:
    """How a model that `is_tensor_parallel` is split.

    Args:
        model: the model.
        team: all ranks of the process group.

    Raises:
        ValueError: it is split in a way of which exact squares are not known; it names the weight or module.
    """
    styles = styles_of(model)
    for name, style in styles.items():
        if style not in STYLES:
            raise ValueError(
                f"{name} is split over the ranks as {style!r}, of which exact per-sample gradients are not supported. "
                f"Supported are {', '.join(sorted(STYLES))}. Load the model without that rule (tp_plan of "
                "DistributedConfig), or in one process."
            )
    _check_shape(model, styles, team.size)
    parts = {}
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            _check_mesh(name, parameter, team)
            parts[id(parameter)] = part_of(parameter)
    partial = {
        id(parameter)
        for name, style in styles.items()
        if style == PARTIAL
        for parameter in _parameters(model, name)
    }
    return Split(team, parts, frozenset(partial))


def styles_of(model: Any) -> dict[str, str]:
    """The modules and parameters that the model's plans name, with the style of each."""
    from transformers.integrations.tensor_parallel import replace_layer_number_by_wildcard

    config = model.config.distributed_config
    plan = dict(model.tp_plan) if config.tp_size > 1 else {}
    experts = dict(model.ep_plan) if config.ep_size > 1 else {}
    within = tuple(f"{name}." for name in experts)
    plan = {
        name: style for name, style in plan.items() if name not in experts and not name.startswith(within)
    }
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    every = {name: replace_layer_number_by_wildcard(name) for name in names}
    return {name: (plan | experts)[rule] for name, rule in every.items() if rule in plan | experts}


def adds_up(hook: Callable[..., Any]) -> bool:
    """Whether it is the hook by which transformers adds up a gradient of which every rank has a summand."""
    return getattr(hook, "__module__", "") == "transformers.distributed.tensor_parallel"


def _parameters(model: nn.Module, name: str) -> Iterable[nn.Parameter]:
    """The parameters that a module itself holds, or the one of that name."""
    modules = dict(model.named_modules())
    return modules[name].parameters(recurse=False) if name in modules else [model.get_parameter(name)]


def _check_shape(model: Any, styles: Mapping[str, str], size: int) -> None:
    """Refuse other ways of splitting beside these, and heads that do not come out even."""
    config = model.config.distributed_config
    others = {name: getattr(config, name, 1) or 1 for name in ("fsdp_size", "dp_replicate_size", "pp_size")}
    if beside := [f"{name}={number}" for name, number in others.items() if number > 1]:
        raise ValueError(
            f"{type(model).__name__} is split over the ranks with {' and '.join(beside)} beside tensor parallelism, "
            "which is not supported. Load it with tp_size (and ep_size) alone."
        )
    split = any(
        style == "colwise" and name.rpartition(".")[2] in _QUERY_KEY for name, style in styles.items()
    )
    text = model.config.get_text_config(decoder=True)
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, name, None)
        if split and isinstance(heads, int) and heads % size:
            raise ValueError(
                f"{type(model).__name__} has {name}={heads}, which {size} ranks cannot share evenly. Take a number of "
                f"ranks that divides it."
            )


def _check_mesh(name: str, parameter: Any, team: Team) -> None:
    mesh = parameter.device_mesh
    if mesh.ndim != 1 or mesh.mesh.flatten().tolist() != list(range(team.size)):
        raise ValueError(
            f"{name} is split over the ranks {mesh.mesh.tolist()} of {team.size}. Supported are weights that are split "
            "over all ranks of the process group in their order: tp_size (or ep_size = tp_size) = the number of ranks, "
            "without FSDP, replicas or pipeline."
        )


def _summed(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    dist.all_reduce(tensor)
    return tensor
