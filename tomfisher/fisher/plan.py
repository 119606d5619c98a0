"""What a Fisher run will take, before it is run: methods, memory, time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tomfisher import ops
from tomfisher.fisher.capture import Capture
from tomfisher.fisher.estimator import bytes_of_sums, in_two_passes
from tomfisher.fisher.linear_maps import Coverage, coverage, linear_maps
from tomfisher.fisher.objective import backward, sample_losses
from tomfisher.fisher.probe import Methods, choose_methods
from tomfisher.fisher.selection import Params, select_parameters
from tomfisher.fisher.stage import WholeModel
from tomfisher.runtime.batches import collate
from tomfisher.runtime.device import device_of
from tomfisher.runtime.gate import check_samples, check_trainable
from tomfisher.runtime.memory import activation_bytes_per_token, token_budget
from tomfisher.runtime.modes import frozen
from tomfisher.runtime.onednn import concerns
from tomfisher.runtime.rules import check_rules
from tomfisher.runtime.torch_state import plain_torch
from tomfisher.sample import Sample

# forward and input gradients are two matrix products per weight, the captured gradient is a third
_CAPTURED_SHARE = 1.5


@dataclass(frozen=True)
class FisherPlan:
    """Cost of a run, sizes in bytes, time in seconds.

    Attributes:
        methods: parameter name to "captured" or "fallback: reason".
        coverage: share of the decoder's linear maps that is selected.
        implementations: which implementation of each op `impl="auto"` will use.
        num_weights: selected weights.
        num_samples: samples of the run.
        num_tokens: tokens of the run.
        num_batches: backward passes.
        tokens_per_batch: budget of one backward pass.
        model_bytes: the model's parameters.
        fisher_bytes: the float32 sums.
        gradient_bytes: the largest gradient held for one sample.
        activation_bytes: rough estimate for one full batch.
        seconds: rough estimate, from one timed sample.
    """

    methods: dict[str, str]
    coverage: Coverage
    implementations: dict[str, str]
    num_weights: int
    num_samples: int
    num_tokens: int
    num_batches: int
    tokens_per_batch: int
    model_bytes: int
    fisher_bytes: int
    gradient_bytes: int
    activation_bytes: int
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """Model, sums, one gradient and activations together."""
        return self.model_bytes + self.fisher_bytes + self.gradient_bytes + self.activation_bytes

    def method_counts(self) -> dict[str, int]:
        """Number of parameters per method, the reason included."""
        return dict(Counter(self.methods.values()))


@plain_torch()
def plan_fisher(
    model: nn.Module,
    samples: Sequence[Sample],
    params: Params = "decoder-linear",
    tokens_per_batch: int | str = "auto",
    impl: ops.Impl = "auto",
) -> FisherPlan:
    """Probe the model, time one sample of median length, and add up what `fisher_diagonal` will need.

    Args:
        model: a transformers causal language model.
        samples: the run's samples.
        params: as in `fisher_diagonal`.
        tokens_per_batch: as in `fisher_diagonal`.
        impl: as in `fisher_diagonal`.

    Returns:
        FisherPlan; memory is arithmetic, time an extrapolation.

    Raises:
        TypeError: as for `fisher_diagonal`.
        ValueError: as for `fisher_diagonal`.
    """
    check_trainable(model, "A Fisher diagonal")
    samples = list(samples)
    check_samples(model, samples)
    maps = linear_maps(model)
    selection = select_parameters(model, params, maps.weights)
    device = device_of(model)
    sums = bytes_of_sums(selection)
    budget = token_budget(tokens_per_batch, model, device, sums)
    rules = check_rules(model, [sample.input_ids for sample in samples], tokens=budget)
    methods = choose_methods(WholeModel(model, rules), selection, samples, rules, budget)
    lengths = [len(s) for s in samples]
    budget = token_budget(tokens_per_batch, model, device, sums, methods.bytes_per_token)
    parts = methods.apart() if in_two_passes(device) else [methods]
    batches = [
        batch for part in parts for batch in rules.plan(lengths, budget, 1 if part.one_at_a_time else None)
    ]
    largest = max(lengths[b[0]] * len(b) for b in batches)
    alone = [name for name in methods.fallback if name not in methods.unreached]
    used = {"squared_gradient_": methods.captured, "square_accumulate_": alone}
    return FisherPlan(
        methods=methods.describe(),
        coverage=coverage(maps, methods.describe()),
        implementations={
            **({"linear": "onednn"} if concerns(model) else {}),
            **{op: ops.resolve(op, impl, device)[0] for op, names in used.items() if names},
        },
        num_weights=sum(p.numel() for p in selection.values()),
        num_samples=len(samples),
        num_tokens=sum(lengths),
        num_batches=len(batches),
        tokens_per_batch=budget,
        model_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        fisher_bytes=sum(sums.values()),
        gradient_bytes=max(p.numel() * 4 for p in selection.values()),
        activation_bytes=largest * activation_bytes_per_token(model),
        seconds=_seconds_per_token(model, samples, selection, methods) * sum(lengths),
    )


def _seconds_per_token(
    model: nn.Module, samples: list[Sample], selection: dict[str, nn.Parameter], methods: Methods
) -> float:
    """Time per token of a sample of median length: one pass, the fastest of three, and what capture adds to it."""
    median = sorted(samples, key=len)[len(samples) // 2]
    batch = collate([median], [0])
    seconds = []
    trainable = tuple(selection[name] for name in methods.fallback)
    capture = Capture(methods.modules, accumulators={})
    with frozen(model, trainable), capture, capture.batch(batch, skip=set()):
        for _ in range(3):
            start = time.perf_counter()
            loss = sample_losses(model, batch, "empirical", "mean", 0)
            backward(loss)
            loss.sum().item()
            seconds.append(time.perf_counter() - start)
    return min(seconds) / len(median) * (_CAPTURED_SHARE if methods.captured else 1.0)
