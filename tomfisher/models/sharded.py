"""Models of which every rank holds some rows of each weight: made from files, and one decoder layer whole at a time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tomfisher.files import sha256_of_text
from tomfisher.models.load import LoadedModel, describe_source, fingerprint, head_of
from tomfisher.models.opened import decoder_layers
from tomfisher.runtime import ranks
from tomfisher.runtime.freed import allocate, empty_shell, free, is_freed
from tomfisher.runtime.gate import check_trainable
from tomfisher.runtime.ranks import Team
from tomfisher.runtime.sharded import check_by_rows, is_sharded, local_rows, settle
from tomfisher.runtime.structure import owners_of

_FSDP = "torch.distributed.fsdp"


class ShardedModel:
    """A model of `fully_shard` whose weights are gathered part by part, as `OpenedModel` reads its from files.

    For the time of `resting` a plain parameter without memory stands for each DTensor, and FSDP2's own hooks, which
    would gather and free weights in every forward, are off: how often a rank runs a layer is nobody else's business
    then. Every rank has to `load` the same names in the same order.

    Args:
        model: a causal language model of transformers; what is not sharded is whole on every rank.
        team: all ranks of the process group.
        source: what is known of where it comes from, as `identity`; None for what its config says.

    Attributes:
        shards: the DTensors, by name.
        layers: the decoder's layers by name, in order.
        outer: names of the parameters outside of them.
        gathered: bytes of weights that were gathered so far.

    Raises:
        TypeError: as for `check_trainable`; for example the model is compiled, or none of transformers.
        ValueError: weights are spread in another way than by rows over all ranks, their numbers are cast by a policy of
            mixed precision or are not on the CPU, or there are none yet; or the decoder's layers are not one list.
    """

    def __init__(self, model: Any, team: Team, source: Mapping[str, Any] | None = None) -> None:
        check_trainable(model, "A Fisher diagonal", rows=True)
        self.model = model
        settle(model)
        self.layers = decoder_layers(
            model, getattr(model.config, "_name_or_path", "") or type(model).__name__
        )
        self.shards: dict[str, Any] = {n: p for n, p in model.named_parameters() if is_sharded(p)}
        check_by_rows(self.shards, team.size)
        _check_devices(model)
        _check_policies(model)
        self._source = source
        self.gathered = 0
        self._team = team
        self._shells: dict[str, nn.Parameter] = {}
        self._names = {name: name for name, _ in model.named_parameters()}
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._names[name] = first[id(parameter)]
        inside = {id(p) for _, layer in self.layers for p in layer.parameters()}
        self.outer = [name for name, p in model.named_parameters() if id(p) not in inside]
        named = model.named_parameters()
        held = fingerprint(model, {n: head_of(local_rows(p) if is_sharded(p) else p) for n, p in named})
        self._shards_sha256 = sha256_of_text(json.dumps(team.exchange("the shards", held)))
        self._heads = {n: head_of(p) for n, p in model.named_parameters() if n not in self.shards}

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Inside the block the model's parameters are plain, and in memory where they are loaded."""
        owners = owners_of(self.model)
        self._shells = {name: _shell(shard) for name, shard in self.shards.items()}
        places = {name: owners[id(shard)] for name, shard in self.shards.items()}
        hooks = _take_hooks(self.model)
        try:
            for name, shell in self._shells.items():
                for owner in places[name]:
                    owner.module._parameters[owner.attribute] = shell
            yield
        finally:
            for name, shard in self.shards.items():
                for owner in places[name]:
                    owner.module._parameters[owner.attribute] = shard
            for own, before in hooks:
                own.clear()
                own.update(before)
            self._shells = {}

    def load(self, names: Iterable[str]) -> None:
        """Gather parameters on every rank; what is there already stays as it is.

        Args:
            names: of parameters, the same on all ranks.

        Raises:
            RankError: a rank has ended, or gathers others.
        """
        wanted = dict.fromkeys(self._names[name] for name in names)
        missing = [name for name in wanted if name in self._shells and is_freed(self._shells[name])]
        if missing:  # where ranks differ in it, rows of different tensors would be put together
            self._team.exchange(f"gathering {missing[0]} and {len(missing) - 1} more")
        for name in missing:
            shell = self._shells[name]
            self._team.gather_rows(local_rows(self.shards[name]), allocate(shell))
            self.gathered += shell.numel() * shell.itemsize
            self._heads.setdefault(name, head_of(shell))

    def free(self, names: Iterable[str]) -> None:
        """Give the memory of gathered parameters back."""
        for name in names:
            if (shell := self._shells.get(self._names[name])) is not None:
                free(shell)

    @contextlib.contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Parameters in memory for the block; those that were there before stay there after it."""
        wanted = [self._names[name] for name in names]
        missing = [name for name in wanted if name in self._shells and is_freed(self._shells[name])]
        self.load(missing)
        try:
            yield
        finally:
            self.free(missing)

    def prefetch(self, names: Iterable[str]) -> None:
        """Nothing: a layer is gathered when it is needed."""

    @property
    def traffic(self) -> dict[str, int]:
        """What was gathered, as a result records it."""
        return {"bytes_gathered": self.gathered}

    def identity(self) -> dict[str, Any]:
        """As `tomfisher.models.load.identify`, and `shards_sha256` of the first values that each rank holds.

        Where the model was read by `spread`, also what `OpenedModel.identity` says.

        `weights_sha256` is None until everything was gathered once.
        """
        whole = all(name in self._heads for name, _ in self.model.named_parameters())
        name = getattr(self.model.config, "_name_or_path", "")
        return {**(self._source or describe_source(self.model, name))} | {
            "weights_sha256": fingerprint(self.model, self._heads) if whole else None,
            "shards_sha256": self._shards_sha256,
        }


def spread(loaded: LoadedModel) -> LoadedModel:
    """A model whose weights `fully_shard` spreads over the ranks as they are read: a rank holds one layer whole.

    Args:
        loaded: from `tomfisher.models.opened.load_opened`, of the same files on all ranks.

    Raises:
        ValueError: there is no process group.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise ValueError(
            "Weights are spread over the ranks of a process group, but there is none. Start several processes, with "
            "`torchrun --nproc_per_node 2 -m tomfisher ...` for example."
        )
    opened = loaded.opened
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, layer in opened.layers:
        with opened.loaded([f"{name}.{own}" for own, _ in layer.named_parameters()]):
            fully_shard(layer, mesh=mesh)
    with opened.loaded(opened.outer):
        fully_shard(opened.model, mesh=mesh)
    team, identity = ranks.current(), opened.identity()
    with team.call("spread"):
        sharded = ShardedModel(opened.model, team, identity)
    return LoadedModel(opened.model, loaded.tokenizer, loaded.name, identity, sharded)


def _shell(shard: Any) -> nn.Parameter:
    """A parameter of the whole tensor's shape without memory."""
    return empty_shell(torch.empty(shard.shape, dtype=shard.dtype, device="meta"))


def _take_hooks(model: nn.Module) -> list[tuple[dict[int, Any], dict[int, Any]]]:
    """Take FSDP2's hooks out of the modules; the dictionaries that held them, and what they held."""
    taken = []
    for module in model.modules():
        for own in (module._forward_pre_hooks, module._forward_hooks):
            foreign = [
                key for key, hook in own.items() if str(getattr(hook, "__module__", "")).startswith(_FSDP)
            ]
            if foreign:
                taken.append((own, dict(own)))
                for key in foreign:
                    del own[key]
    return taken


def _check_devices(model: nn.Module) -> None:
    """Refuse weights elsewhere than on the CPU, where layers are gathered."""
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise ValueError(
                f"{name} is on {parameter.device}: the Fisher of weights that FSDP2 spreads over ranks is taken on the "
                "CPU. Shard the model there, on init_device_mesh('cpu', (world_size,))."
            )


def _check_policies(model: nn.Module) -> None:
    """Refuse what `fully_shard` would do to the numbers."""
    from torch.distributed.fsdp import FSDPModule

    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            policy = _state_of(module)._mp_policy
            if (policy.param_dtype, policy.output_dtype) != (None, None):
                raise ValueError(
                    f"{name or 'The model'} is sharded with {policy}, which casts weights in every forward. Load the "
                    "model in the dtype of which F shall be, and set no policy."
                )


def _state_of(module: Any) -> Any:
    """What FSDP2 knows of a module."""
    return module._get_fsdp_state()
