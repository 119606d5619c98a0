"""The run itself: batching independence, memory, bad input, and a model that comes back as it was."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tomfisher
from tomfisher.fisher import estimator, run
from tomfisher.fisher.stage import WholeModel
from tomfisher.runtime.batches import Batch
from tomfisher.sample import Sample


def test_the_budget_does_not_change_the_result(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("qwen2"), tiny.samples(9)
    runs = [
        tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=budget, progress=False)
        for budget in (1, 30, 10_000)
    ]
    expected = tiny.definition(model, samples)
    for F in runs:
        tiny.assert_exact(F, expected)


def test_twice_the_same_run_gives_the_same_bits(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-tied"), tiny.samples(5)
    a, b = (tomfisher.fisher_diagonal(model, samples, params="all", progress=False) for _ in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_sixteen_bit_models_accumulate_in_fp32_and_stay_close(tiny: SimpleNamespace) -> None:
    """Error against the fp64 Fisher of the same bf16 weights: no larger than autograd in bf16 makes, plus a tenth."""
    model, samples = tiny.model("llama-gqa").bfloat16(), tiny.samples(5)
    expected = tiny.definition(model, samples)
    F = tomfisher.fisher_diagonal(model, samples, progress=False)
    assert all(F[n].dtype == torch.float32 for n in F)
    eager = {n: torch.zeros_like(expected[n]) for n in F}
    model.eval()
    for sample in samples:
        model.zero_grad()
        model(input_ids=sample.input_ids[None], labels=sample.labels[None], use_cache=False).loss.backward()
        for n, p in model.named_parameters():
            if n in eager:
                eager[n] += p.grad.double().square()
    for n in F:
        scale = expected[n].norm()
        ours, theirs = (F[n].double() - expected[n]).norm() / scale, (eager[n] - expected[n]).norm() / scale
        assert ours <= theirs + 0.1, n


def _fails_once(monkeypatch: pytest.MonkeyPatch, at_call: int) -> list[int]:
    """Make one contribution of the first full batch run out of memory in the middle of the backward pass."""
    calls: list[int] = []
    original = tomfisher.ops.squared_gradient_

    def failing(F, grad_output, *args, **kwargs):  # type: ignore[no-untyped-def]
        if kwargs.get("impl") != "reference":  # not in the probe
            calls.append(grad_output.shape[0])
            if sum(n > 2 for n in calls) == at_call and calls[-1] > 2:
                raise torch.OutOfMemoryError("out of memory (simulated)")
        return original(F, grad_output, *args, **kwargs)

    monkeypatch.setattr(tomfisher.ops, "squared_gradient_", failing)
    return calls


@pytest.mark.parametrize("at_call", [1, 2, 3, 7, 8])
def test_running_out_of_memory_between_the_parameters_of_experts_counts_nothing_twice(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    model, samples = tiny.model("gpt-oss"), tiny.samples(8)  # weights and biases: two calls per projection
    expected = tiny.definition(model, samples)
    calls = _fails_once(monkeypatch, at_call)
    F = tomfisher.fisher_diagonal(
        model, samples, params="*.experts.*", tokens_per_batch=10_000, progress=False
    )
    assert len(calls) > at_call
    tiny.assert_exact(F, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family_of", ["llama-gqa", "mixtral"])
@pytest.mark.parametrize("at_sum", [1, 2, 4])
def test_running_out_of_memory_in_the_check_of_a_gradient_counts_nothing_twice(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, family_of: str, at_sum: int
) -> None:
    model, samples = tiny.model(family_of), tiny.samples(8)
    expected = tiny.definition(model, samples)
    sums, probed = 0, False
    original, probe = torch.Tensor.sum, estimator.choose_methods

    def probing(*args: object) -> object:
        nonlocal probed
        methods = probe(*args)  # type: ignore[arg-type]
        probed = True
        return methods

    def failing(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        nonlocal sums
        backward = torch._C._current_graph_task_id() != -1
        if probed and backward and kwargs.get("dtype") == torch.float32 and len(tensor) > 2:
            sums += 1
            if sums == at_sum:
                raise torch.OutOfMemoryError("out of memory (simulated)")
        return original(tensor, *args, **kwargs)

    monkeypatch.setattr(estimator, "choose_methods", probing)
    monkeypatch.setattr(torch.Tensor, "sum", failing)
    F = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=10_000, progress=False)
    monkeypatch.undo()
    assert sums > at_sum
    tiny.assert_exact(F, expected)


@pytest.mark.parametrize("at_call", [1, 5, 14])
def test_running_out_of_memory_halves_the_batch_and_counts_nothing_twice(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(8)
    expected = tiny.definition(model, samples)
    calls = _fails_once(monkeypatch, at_call)
    F = tomfisher.fisher_diagonal(model, samples, params="all", tokens_per_batch=10_000, progress=False)
    assert 8 in calls and 4 in calls
    tiny.assert_exact(F, expected)


def test_one_sample_that_does_not_fit_is_named(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(3)

    class Full(WholeModel):  # its `probing()` is a plain one
        def forward(self, batch: Batch) -> torch.Tensor:
            raise torch.OutOfMemoryError("out of memory (simulated)")

    monkeypatch.setattr(estimator, "WholeModel", Full)
    with pytest.raises(MemoryError, match=r"sample \d \(s\d\) with \d+ tokens does not fit"):
        tomfisher.fisher_diagonal(model, samples, progress=False)
    monkeypatch.undo()
    tomfisher.fisher_diagonal(model, samples, progress=False)


def _state(model: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), "forward" in m.__dict__, m.training) for m in model.modules()]
    return [*hooks, *((p.requires_grad, p.grad is None) for p in model.parameters())]


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_comes_back_as_it_was(tiny: SimpleNamespace, broken: bool) -> None:
    model = tiny.model("llama-tied")
    tiny.enable_checkpointing(model)
    model.train()
    model.model.norm.eval()
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.grad = torch.ones_like(model.model.layers[0].mlp.up_proj.weight)
    weights = copy.deepcopy(model.state_dict())
    if broken:
        weights["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
        model.load_state_dict(weights)
    before = _state(model)
    if broken:
        with pytest.raises(
            FloatingPointError, match=r"sample \d \(s\d\) is nan.*layers.1.mlp.down_proj.weight"
        ):
            tomfisher.fisher_diagonal(model, tiny.samples(3), params="all", progress=False)
    else:
        tomfisher.fisher_diagonal(model, tiny.samples(3), params="all", progress=False)
    assert _state(model) == before
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight.grad,
        torch.ones_like(model.model.layers[0].mlp.up_proj.weight),
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), weights[name].nan_to_num(7)), name


def test_a_non_finite_gradient_names_sample_and_module(tiny: SimpleNamespace) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(4)

    def spoil(module: nn.Module, args: object, output: torch.Tensor) -> None:
        if output.requires_grad and output.shape[0] == 4:  # not in the probe
            output.register_hook(lambda g: g.index_fill(0, torch.tensor([2]), float("inf")))

    model.model.layers[1].mlp.down_proj.register_forward_hook(spoil)
    order = sorted(range(4), key=lambda i: (-len(samples[i]), i))
    with pytest.raises(
        FloatingPointError,
        match=rf"output of model\.layers\.1\.mlp\.(up|gate)_proj.*sample {order[2]} \(s{order[2]}\)",
    ):
        tomfisher.fisher_diagonal(model, samples, tokens_per_batch=1000, progress=False)


def test_sampled_labels_are_seeded_independent_of_batching_and_distributed_like_the_model(
    tiny: SimpleNamespace,
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(6)

    def run(seed: int, budget: int = 1000) -> tomfisher.FisherDiagonal:
        return tomfisher.fisher_diagonal(
            model, samples, labels="sampled", seed=seed, tokens_per_batch=budget, progress=False
        )

    a, again, alone, other = run(1), run(1), run(1, 1), run(2)
    name = next(iter(a))
    assert torch.equal(a[name], again[name])
    assert torch.allclose(a[name], alone[name], rtol=1e-4)
    assert not torch.allclose(a[name], other[name], rtol=1e-2)
    assert a.definition["seed"] == 1


def test_draws_follow_the_softmax() -> None:
    from tomfisher.fisher.objective import _draw

    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).log_softmax(0)
    targets = torch.zeros(1, 20_000, dtype=torch.long)
    drawn = _draw(logits.expand(1, 20_000, 4), targets, targets, [0], seed=3)
    frequency = drawn.bincount(minlength=4) if drawn.ndim == 1 else drawn[0].bincount(minlength=4)
    expected = logits.exp() * 20_000
    # a count's standard deviation is below sqrt(np): five of them
    assert ((frequency - expected).abs() <= 5 * expected.sqrt()).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"samples": []}, ValueError, "at least one Sample"),
        ({"labels": "true"}, ValueError, "labels must be one of empirical, sampled"),
        ({"reduction": "none"}, ValueError, "reduction must be one of mean, sum"),
        ({"tokens_per_batch": "lots"}, ValueError, "tokens_per_batch must be 'auto' or a number"),
        ({"tokens_per_batch": 0}, ValueError, "tokens_per_batch must be at least 1"),
        ({"params": "*.no_such.weight"}, ValueError, "matches no parameter; names look like"),
        ({"params": lambda name, p: False}, ValueError, "selects nothing"),
        ({"params": 3}, TypeError, "params must be a preset"),
        ({"impl": "cuda"}, ValueError, "impl must be 'auto' or one of"),
        ({"samples": ["a text"]}, TypeError, r"samples\[0\] is a str.*tomfisher.encode"),
    ],
)
def test_bad_arguments(
    tiny: SimpleNamespace, change: dict[str, object], error: type[Exception], match: str
) -> None:
    arguments = {"samples": tiny.samples(2), "progress": False, **change}
    with pytest.raises(error, match=match):
        tomfisher.fisher_diagonal(tiny.model("llama-gqa"), **arguments)  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_refused(tiny: SimpleNamespace) -> None:
    ids = torch.tensor([5, 99])
    with pytest.raises(ValueError, match="token id 99, but the model's vocabulary has 53"):
        tomfisher.fisher_diagonal(tiny.model("llama-gqa"), [Sample(ids, ids)], progress=False)


def test_a_sample_longer_than_the_context_is_refused_by_name(tiny: SimpleNamespace) -> None:
    ids = torch.arange(65) % 53
    with pytest.raises(
        ValueError, match=r"\(long\) has 65 tokens, but the model has positions for 64.*max_length"
    ):
        tomfisher.fisher_diagonal(tiny.model("mpt"), [Sample(ids, ids, name="long")], progress=False)


def test_an_explicit_implementation_is_not_replaced(tiny: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="impl='triton' needs CUDA tensors"):
        tomfisher.fisher_diagonal(tiny.model("llama-gqa"), tiny.samples(2), impl="triton", progress=False)


def test_the_budget_stays_halved_once_memory_ran_out(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = tiny.model("llama-gqa"), tiny.samples(9) * 4
    expected = tiny.definition(model, samples)
    failures = []

    class Tight(WholeModel):
        def forward(self, batch: Batch) -> torch.Tensor:
            if batch.shape[0] * batch.shape[1] > 60:
                failures.append(batch.shape)
                raise torch.OutOfMemoryError("out of memory (simulated)")
            return super().forward(batch)

    monkeypatch.setattr(estimator, "WholeModel", Tight)
    F = tomfisher.fisher_diagonal(model, samples, tokens_per_batch=200, progress=False)
    assert 1 <= len(failures) <= 4  # each batch once would be at least twice that
    tiny.assert_exact(F, expected)


def test_the_precision_reaches_every_product_and_is_recorded(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tomfisher import ops

    asked: list[str] = []
    original = ops.squared_gradient_

    def watched(*args: object, **options: object) -> object:
        asked.append(str(options["precision"]))
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "squared_gradient_", watched)
    model, samples = tiny.model("mixtral"), tiny.samples(3)
    F = tomfisher.fisher_diagonal(model, samples, precision="tf32x3", progress=False)
    assert asked.count("tf32x3") >= len(F)
    assert F.metadata["precision"] == "ieee"  # no Triton kernel multiplied
    monkeypatch.setattr(estimator.ops, "resolve", lambda op, impl, device: ("triton", None))
    F = tomfisher.fisher_diagonal(model, samples, precision="tf32x3", progress=False)
    assert F.metadata["precision"] == "tf32x3"
    with pytest.raises(ValueError, match="precision must be one of ieee, tf32x3, tf32, got 'half'"):
        tomfisher.fisher_diagonal(model, samples, precision="half")  # type: ignore[arg-type]


def test_what_a_failed_batch_held_is_gone_before_memory_is_given_back(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []
    released = []

    class Failing(WholeModel):
        def backward(self, outputs: torch.Tensor, batch: Batch) -> None:
            if not held:
                held.append(weakref.ref(outputs))
                raise torch.OutOfMemoryError("out of memory (simulated)")
            super().backward(outputs, batch)

    monkeypatch.setattr(estimator, "WholeModel", Failing)
    monkeypatch.setattr(run, "release", lambda: released.append(held[0]() is None))
    tomfisher.fisher_diagonal(tiny.model("llama-gqa"), tiny.samples(4), progress=False)
    assert released == [True]
