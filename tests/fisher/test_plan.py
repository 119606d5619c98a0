from __future__ import annotations

from types import SimpleNamespace

import tomfisher
from tomfisher.cli.plan import format_fisher
from tomfisher.fisher.plan import plan_fisher


def test_the_plan_is_what_the_run_does(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("mamba"), tiny.samples(5)
    plan = plan_fisher(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert plan.methods == F.methods
    assert (
        plan.num_weights == sum(v.numel() for v in F.values()) and plan.fisher_bytes == 4 * plan.num_weights
    )
    assert plan.num_batches == 5  # the fallback needs one sample at a time
    assert plan.num_tokens == F.num_tokens
    assert plan.implementations == {op.partition("@")[0]: name for op, name in F.implementations.items()}
    assert plan.peak_bytes > plan.fisher_bytes + plan.model_bytes and plan.seconds > 0
    text = format_fisher(plan)
    assert "fallback: its module is not called" in text and "captured" in text


def test_without_fallback_samples_share_a_batch(tiny: SimpleNamespace) -> None:
    plan = plan_fisher(tiny.model("llama-gqa"), tiny.samples(9), tokens_per_batch=1000)
    assert plan.num_batches == 1 and set(plan.methods.values()) == {"captured"}
