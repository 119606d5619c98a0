"""`fisher_diagonal`: samples in, exact per-sample squared gradients out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from tomfisher import ops
from tomfisher.files import check_writable
from tomfisher.fisher.diagonal import FisherDiagonal, save_by_ranks
from tomfisher.fisher.linear_maps import coverage, linear_maps
from tomfisher.fisher.objective import Labels, Reduction
from tomfisher.fisher.probe import choose_methods
from tomfisher.fisher.record import Asked, Outcome, describe_run
from tomfisher.fisher.run import Run
from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.fisher.split import check_replicated, tokens_stay
from tomfisher.fisher.stage import WholeModel
from tomfisher.fisher.store import check_target
from tomfisher.fisher.streamed import SampleSet, stream_diagonals
from tomfisher.fisher.together import add_up, agree, merged, methods_of, what_ran
from tomfisher.models.load import identify
from tomfisher.models.opened import OpenedModel
from tomfisher.models.sharded import ShardedModel
from tomfisher.progress import progress_bar
from tomfisher.runtime import ranks
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples, check_trainable
from tomfisher.runtime.memory import token_budget
from tomfisher.runtime.parts import placed_like
from tomfisher.runtime.rules import check_rules, weights_kept
from tomfisher.runtime.sharded import sharded_names
from tomfisher.runtime.tensor_parallel import WHOLE, Split, adds_up, is_tensor_parallel, split_of, team_for
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample, digest


@plain_torch()
def fisher_diagonal(
    model: nn.Module | OpenedModel | ShardedModel,
    samples: Sequence[Sample],
    params: Params = "decoder-linear",
    labels: Labels = "empirical",
    reduction: Reduction = "mean",
    tokens_per_batch: int | str = "auto",
    impl: ops.Impl = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
    precision: ops.Precision = "ieee",
    boundary: str | os.PathLike[str] = "auto",
) -> FisherDiagonal:
    """Diagonal of the Fisher information, exact per sample: `F_i = Σ_n (∂ℓ_n/∂θ_i)²`.

    ℓ_n is the negative log-likelihood (nats) of the supervised tokens of sample n, averaged ("mean", the
    paper's) or summed ("sum") over those tokens. Squares are of the gradient of ONE sample, never of a batch
    sum or of a token, and are summed over samples in float32. Equivalent PyTorch::

        for sample in samples:
            loss(model, sample).backward()
            for name, p in selected: F[name] += p.grad.float() ** 2; p.grad = None

    but no weight gradient is ever stored where a module can be captured: see `.methods` of the result.

    In an initialised process group of `torch.distributed` every rank makes this call with the same arguments. Each
    takes a share of the samples with about as many tokens as the others' (`tomfisher.runtime.ranks.shares`), and gets
    the whole result: sums are added in rank order, with the same bits each time for a fixed number of ranks. Rank 0
    writes `out`, and shows the progress of its own share. Of an opened model each rank reads every layer, and writes
    its rows of F to `out`. So it does where FSDP2 (`fully_shard`) spreads the weights over all ranks, on the CPU: each
    layer is gathered when it is needed. Where transformers has split the model itself over all ranks (tensor parallel,
    experts), each rank runs all samples. Of both the result without `out` holds DTensors that are split as the
    parameters are.

    Args:
        model: a transformers causal language model, on any device(s), in any floating-point dtype. It comes
            back as it was: weights, `requires_grad`, `.grad`, training flags. Or one that `tomfisher.models.open_model`
            opened, of which one decoder layer is in memory at a time.
        samples: token sequences with labels; ragged lengths are fine.
        params: "decoder-linear" (weight matrices of the decoder layers), "attention-qk", "all", glob
            pattern(s), or a predicate `(name, parameter) -> bool`.
        labels: "empirical" uses the samples' labels, "sampled" draws them from the model's prediction at the
            supervised positions (Monte-Carlo estimate of the true Fisher, one draw per sample).
        reduction: over the supervised tokens of one sample.
        tokens_per_batch: budget of `B * T` per backward pass, or "auto". Halved when memory runs out.
        impl: implementation of the ops: "auto", "triton", "triton-hopper", "cpp" or "reference".
        out: folder to save the result to as a Fisher store. That of an opened model is written as its layers are done,
            and the same call goes on where an earlier one was interrupted.
        progress: show a bar on a terminal.
        seed: for labels="sampled".
        precision: of float32 products in the Triton kernels, see `ops.squared_gradient_`; the model's own forward and
            backward stay exact.
        boundary: of an opened model, where the hidden states between layers are kept: "ram", or the folder of a file;
            "auto" is memory without `out`, and beside the store with it.

    Returns:
        FisherDiagonal: parameter name to float32 tensor of the parameter's shape, device and placements, with
        `num_samples`, `num_tokens`, `definition`, `methods` and `implementations`.

    Raises:
        TypeError: the model is none of these, or a sample is no `Sample`.
        ValueError: no samples, an unknown option, ids outside the vocabulary, a sample longer than the
            model's context, nothing selected, hooks on a selected parameter's gradient, TorchScript in the
            model, no backward pass in evaluation mode, or a model that breaks a rule that a likelihood rests
            on (`tomfisher.runtime.rules`); what it allows is in `.metadata["rules"]`.
        NotImplementedError: the implementation asked for does not exist here.
        FileExistsError: something that is no store stands at `out`.
        FloatingPointError: a loss or gradient is not finite; names the sample and the tensor.
        MemoryError: one sample alone does not fit.
        RankError: another rank has ended.

    Source:
        arXiv 2504.04238 (empirical, "mean", one sample per backward pass).
    """
    team = team_for(model)
    samples = list(samples)
    asked = Asked(params, labels, reduction, tokens_per_batch, impl, seed, precision)
    with team.call("fisher_diagonal"):
        if out is not None:
            team.first("a look at out", partial(_check_out, out))
        _check_settings(asked, samples)
        if isinstance(model, OpenedModel):
            return stream_diagonals(model, [SampleSet(samples, out)], asked, boundary, progress)[0]
        if _is_by_rows(model):
            model = ShardedModel(model, team)
        if isinstance(model, ShardedModel):
            with model.resting():
                return stream_diagonals(model, [SampleSet(samples, out)], asked, boundary, progress)[0]
        result = _resident(model, samples, asked, progress, team)
        if out is not None:
            save_by_ranks(result, out, team)
    return result


def _is_by_rows(model: Any) -> bool:
    """Whether FSDP2 has spread a model's weights over the ranks, or some of them."""
    is_split = not isinstance(model, nn.Module) or is_tensor_parallel(model)
    return not is_split and bool(sharded_names(model.named_parameters()))


def _check_out(out: str | os.PathLike[str]) -> None:
    check_writable(out, folder=True, replaced=True)
    check_target(out)


def _resident(
    model: nn.Module, samples: list[Sample], asked: Asked, progress: bool, team: ranks.Team
) -> FisherDiagonal:
    """The sums of a model that is in memory as a whole, on every rank of a team of which each has done its share."""
    check_trainable(model, "A Fisher diagonal", split=True)
    check_samples(model, samples)
    if not is_tensor_parallel(model):
        return _added(model, samples, asked, progress, team, WHOLE)
    split = split_of(model, team)
    with tokens_stay(model, split):
        return _added(model, samples, asked, progress, team, split)


def _added(
    model: nn.Module, samples: list[Sample], asked: Asked, progress: bool, team: ranks.Team, split: Split
) -> FisherDiagonal:
    """Samples through the model, on a rank that takes a share of them, or all where the model itself is split."""
    params, impl = asked.params, asked.impl
    maps = linear_maps(model)
    selection = select_parameters(model, params, maps.weights)
    _check_hooks(selection)
    identity, data = identify(model, getattr(model.config, "_name_or_path", "")), digest(samples)
    agree(team, asked, selection, identity, data)
    own = team.share([len(sample) for sample in samples])
    for device in {parameter.device for parameter in selection.values()}:
        ops.resolve("squared_gradient_", impl, device)  # one that is missing stops the run before the probe
    device, sums = device_of(model), bytes_of_sums(selection, split)
    budget = split.least("budget", token_budget(asked.tokens_per_batch, model, device, sums))
    rules = check_rules(model, [sample.input_ids for sample in samples], tokens=budget)
    stage = WholeModel(model, rules, asked.labels, asked.reduction, asked.seed, split)
    if split.is_split:
        team.agree("the rules that the model keeps", {"batches": rules.batches, "rows": asdict(rules.rows)})
        check_replicated(stage, selection, samples)
    methods = choose_methods(stage, selection, samples, rules, budget)
    budget = token_budget(asked.tokens_per_batch, model, device, sums, methods.bytes_per_token)
    budget = split.least("budget", budget)
    runs = [
        Run(stage, selection, part, samples, impl, asked.precision)
        for part in (methods.apart() if in_two_passes(device) else [methods])
    ]
    total, shown = sum(len(samples[i]) for i in own), progress and team.is_first
    with weights_kept(model):
        for run in runs:
            with progress_bar(total=total, desc="Fisher", unit="token", enabled=shown) as bar:
                run.all_batches(budget, bar.update, own)
    squares = {name: F for run in runs for name, F in run.F.items()}
    F = {name: squares[name] for name in selection}
    if split.is_split:
        F = {name: placed_like(parameter, F[name]) for name, parameter in selection.items()}
    else:
        add_up(team, F)
    outcomes = [Outcome.of(run) for run in runs]
    parts = team.exchange("what ran", what_ran(outcomes, own, samples))
    taken = methods_of(parts)
    described = describe_run(asked, model, outcomes, rules, coverage(maps, taken), budget, identity, data)
    return FisherDiagonal(
        F,
        num_samples=len(samples),
        num_tokens=sum(len(s) for s in samples),
        methods=taken,
        metadata=merged(described, parts, "model" if split.is_split else "samples"),
    )


def bytes_of_sums(selection: Mapping[str, nn.Parameter], split: Split = WHOLE) -> dict[torch.device, int]:
    """What the float32 sums of these parameters, or of what this rank holds of them, take, per device."""
    sizes: dict[torch.device, int] = {}
    for parameter in selection.values():
        size = math.prod(split.shape(parameter))
        sizes[parameter.device] = sizes.get(parameter.device, 0) + 4 * size
    return sizes


def in_two_passes(device: torch.device) -> bool:
    """Whether what needs every sample alone gets a pass of its own, instead of taking the rest out of its batches.

    On a GPU a batch of one sample reads and writes every F for a few tokens. On the CPU a second pass costs more than
    batches save.
    """
    return device.type == "cuda"


def _check_hooks(selection: dict[str, nn.Parameter]) -> None:
    """Refuse what somebody else does to a gradient, or with it (an optimiser that steps in the backward pass)."""
    for name, parameter in selection.items():
        after = parameter._post_accumulate_grad_hooks or {}
        if parameter._backward_hooks or any(not adds_up(hook) for hook in after.values()):
            raise ValueError(
                f"{name} has hooks on its gradient (register_hook, register_post_accumulate_grad_hook), which may "
                "change it, or step an optimiser. Remove them first."
            )


def _check_settings(asked: Asked, samples: list[Sample]) -> None:
    if not samples:
        raise ValueError("samples is empty: a Fisher diagonal needs at least one Sample.")
    for value, allowed, name in (
        (asked.labels, get_args(Labels), "labels"),
        (asked.reduction, get_args(Reduction), "reduction"),
        (asked.precision, get_args(ops.Precision), "precision"),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
