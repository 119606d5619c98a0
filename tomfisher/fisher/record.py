"""What a Fisher run was asked for and what it did, as a result records it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tomfisher import ops
from tomfisher.fisher.linear_maps import Coverage
from tomfisher.fisher.objective import Labels, Reduction
from tomfisher.fisher.run import Run
from tomfisher.fisher.selection import Params, describe_params, left_out
from tomfisher.provenance import versions
from tomfisher.runtime.rules import Rules
from tomfisher.runtime.scan import scan_of


@dataclass(frozen=True)
class Asked:
    """The settings of `fisher_diagonal` that decide what F is and how it is computed."""

    params: Params
    labels: Labels
    reduction: Reduction
    tokens_per_batch: int | str
    impl: ops.Impl
    seed: int
    precision: ops.Precision

    @property
    def definition(self) -> dict[str, Any]:
        """What F is a sum of."""
        return {
            "formula": "F_i = sum over samples of (d loss_n / d theta_i)^2",
            "loss": "negative log-likelihood of the supervised tokens, nats",
            "labels": self.labels,
            "reduction": self.reduction,
            "seed": self.seed if self.labels == "sampled" else None,
        }


def describe_run(
    asked: Asked,
    model: nn.Module,
    runs: Sequence[Run],
    rules: Rules,
    covered: Coverage,
    budget: int,
    identity: dict[str, Any],
    data: str,
) -> dict[str, Any]:
    """The metadata of a `FisherDiagonal`.

    Args:
        asked: the settings.
        model: what was run.
        runs: through it, or through each of its layers.
        rules: that it was found to keep.
        covered: of its decoder's linear maps.
        budget: `B * T` per batch at the start.
        identity: of the model.
        data: digest of the samples.
    """
    held: dict[torch.device, int] = {}
    for run in runs:
        held.update(run.methods.bytes_per_token)
    return {
        "definition": asked.definition,
        "params": describe_params(asked.params),
        "probed_tokens": max(run.methods.probed_tokens for run in runs),
        "tokens_per_batch": {
            "asked": asked.tokens_per_batch,
            "taken": budget,
            "least": min(run.budget for run in runs),  # after what did not fit
            "bytes_per_token": {str(gpu): size for gpu, size in held.items()},
        },
        "left_out": left_out(model, asked.params),
        "coverage": covered.to_dict(),
        "model": identity,
        "data_sha256": data,
        "precision": _effective(asked.precision, runs),
        "implementations": {op: impl for run in runs for op, impl in run.implementations.items()},
        "rules": rules.to_dict(),
        "versions": versions(),
        "scan": scan_of(model),
    }


def _effective(asked: str, runs: Sequence[Run]) -> str:
    """The precision that products had: what was asked for where Triton kernels multiplied float32, else exact."""
    for run in runs:
        single = any(run.selection[name].dtype == torch.float32 for name in run.methods.captured)
        if single and "triton" in run.implementations.values():
            return asked
    return "ieee"
