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


@dataclass(frozen=True)
class Outcome:
    """What a run found out beside the sums, in plain JSON values.

    Attributes:
        methods: parameter name to "captured" or "fallback: reason".
        probed_tokens: length of the longest sample that was looked at both ways.
        budget: `B * T` per batch, after what did not fit.
        bytes_per_token: per GPU, what a token of a batch held there.
        implementations: of each op.
        single: whether float32 matrices were captured.
    """

    methods: dict[str, str]
    probed_tokens: int
    budget: int
    bytes_per_token: dict[str, int]
    implementations: dict[str, str]
    single: bool

    @classmethod
    def of(cls, run: Run) -> Outcome:
        """What a finished run found out."""
        return cls(
            run.methods.describe(),
            run.methods.probed_tokens,
            run.budget,
            {str(gpu): size for gpu, size in run.methods.bytes_per_token.items()},
            run.implementations,
            any(run.selection[name].dtype == torch.float32 for name in run.methods.captured),
        )


def describe_run(
    asked: Asked,
    model: nn.Module,
    outcomes: Sequence[Outcome],
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
        outcomes: of the runs through it, or through each of its layers.
        rules: that it was found to keep.
        covered: of its decoder's linear maps.
        budget: `B * T` per batch at the start.
        identity: of the model.
        data: digest of the samples.
    """
    return {
        "definition": asked.definition,
        "params": describe_params(asked.params),
        "probed_tokens": max(outcome.probed_tokens for outcome in outcomes),
        "tokens_per_batch": {
            "asked": asked.tokens_per_batch,
            "taken": budget,
            "least": min(outcome.budget for outcome in outcomes),  # after what did not fit
            "bytes_per_token": {
                g: size for outcome in outcomes for g, size in outcome.bytes_per_token.items()
            },
        },
        "left_out": left_out(model, asked.params),
        "coverage": covered.to_dict(),
        "model": identity,
        "data_sha256": data,
        "precision": _effective(asked.precision, outcomes),
        "implementations": {op: impl for outcome in outcomes for op, impl in outcome.implementations.items()},
        "rules": rules.to_dict(),
        "versions": versions(),
        "scan": scan_of(model),
    }


def _effective(asked: str, outcomes: Sequence[Outcome]) -> str:
    """The precision that products had: what was asked for where Triton kernels multiplied float32, else exact."""
    by_triton = (outcome.single and "triton" in outcome.implementations.values() for outcome in outcomes)
    return asked if any(by_triton) else "ieee"
