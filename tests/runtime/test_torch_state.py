"""PyTorch's global state neither changes a result nor breaks a run, and is as it was behind every public call."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tomfisher
from tiny_models import config_of, random_model
from tokenizer_kinds import word_level
from tomfisher import analysis, finetune, interventions
from tomfisher.fisher.plan import plan_fisher
from tomfisher.masks import SparseMask, rank, summary
from tomfisher.runtime.torch_state import plain_torch, seeded
from tomfisher.sample import Sample
from tomfisher.tasks import corpus
from tomfisher.tasks.story import Story

WORDS = [f"w{i}" for i in range(40)]


@contextlib.contextmanager
def switched(on: Callable[[], None], off: Callable[[], None]) -> Iterator[None]:
    on()
    try:
        yield
    finally:
        off()


def default_dtype(dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    before = torch.get_default_dtype()
    return switched(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(before))


def deterministic(warn_only: bool) -> contextlib.AbstractContextManager[None]:
    return switched(
        lambda: torch.use_deterministic_algorithms(True, warn_only=warn_only),
        lambda: torch.use_deterministic_algorithms(False),
    )


def products(precision: str) -> contextlib.AbstractContextManager[None]:
    return switched(
        lambda: torch.set_float32_matmul_precision(precision),
        lambda: torch.set_float32_matmul_precision("highest"),
    )


def new_products() -> contextlib.AbstractContextManager[None]:
    def to(precision: str) -> None:
        torch.backends.mkldnn.matmul.fp32_precision = precision  # type: ignore[attr-defined]

    return switched(lambda: to("bf16"), lambda: to("ieee"))


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta block": lambda: torch.device("meta"),
    "meta default": lambda: switched(
        lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)
    ),
    "deterministic": lambda: deterministic(False),
    "deterministic, warnings": lambda: deterministic(True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "medium": lambda: products("medium"),
    "high": lambda: products("high"),
    "bf16 products": new_products,
}


def state() -> tuple[Any, ...]:
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # both interfaces were used
        products = "mixed"
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.is_anomaly_enabled(),
        products,
    )


FRESH = state()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    assert state() == FRESH


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_level(["<unk>", "</s>", *WORDS], unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(config_of("llama-gqa", vocab_size=48), seed=0)


@pytest.fixture(scope="module")
def F(model: Any) -> Any:
    return tomfisher.fisher_diagonal(model, SAMPLES, params="all", progress=False)


def make_samples() -> list[Sample]:
    return [Sample(torch.arange(2, 2 + n), torch.arange(2, 2 + n), f"s{n}") for n in (5, 9)]


SAMPLES = make_samples()


def stories() -> list[Story]:
    return [
        Story(f"w1 w2 w{i}", "w4 w5", ("w6", "w7 w8"), i % 2, "c", 1, f"q{i}", "{story} {question}")
        for i in range(3)
    ]


def prompts() -> list[list[int]]:
    return [[2, 3, 4, 5, 6, 7], [8, 9, 10, 2]]


INDEX = torch.tensor([0, 3, 7, 20])


def mask_of(model: Any) -> SparseMask:
    named = {n: p for n, p in model.named_parameters() if "proj" in n}
    return SparseMask(dict.fromkeys(named, INDEX), {n: tuple(p.shape) for n, p in named.items()})


def perturbed(fill: str | float) -> Callable[[Any, Any, Any], Any]:
    def call(model: Any, tokenizer: Any, F: Any) -> Any:
        with tomfisher.perturb(model, mask_of(model), fill=fill):
            inside = {n: p.detach().clone() for n, p in model.named_parameters()}
        return inside, {n: p.detach().clone() for n, p in model.named_parameters()}

    return call


def tuned(model: Any, tokenizer: Any, F: Any) -> Any:
    with finetune.finetune_masked(model, mask_of(model), SAMPLES, steps=2, progress=False) as found:
        return found.losses, dict(found.delta.new)


def tuned_lora(model: Any, tokenizer: Any, F: Any) -> Any:
    pytest.importorskip("peft")
    plan = finetune.plan_lora(model, list(mask_of(model)), 400)
    with finetune.finetune_lora(model, plan, SAMPLES, steps=2, progress=False) as found:
        return found.losses, [p.detach().clone() for p in found.parameters()]


def intervened(model: Any, tokenizer: Any, F: Any) -> Any:
    internals = interventions.measure_internals(model, prompts())
    change = interventions.ScaleBand("dominant", 0.5), interventions.OffSink(0.1)
    with interventions.intervene(model, *change, internals=internals):
        return tomfisher.evaluate.score(model, tokenizer, stories(), progress=False).to_dict()


def masks(model: Any, tokenizer: Any, F: Any) -> Any:
    one, other = tomfisher.top_fraction(F, 0.1), tomfisher.top_fraction(F, 0.05)
    found = [one - other, one & other, one | other, one.random_like(3), one.restrict("*proj*")]
    ranking = rank(F, 0.1, scope="model")
    return [dict(m) for m in (*found, ranking.mask(0.01))], one.dense(next(iter(one))), F.mean()


def files(model: Any, tokenizer: Any, F: Any) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        F.save(folder / "store")
        mask_of(model).save(folder / "mask.safetensors")
        stored = tomfisher.FisherDiagonal.load(folder / "store")
        chosen = tomfisher.top_fraction(stored, 0.1), SparseMask.load(folder / "mask.safetensors")
        return {n: stored[n].clone() for n in stored}, [dict(mask) for mask in chosen], stored.mean()


CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "fisher_diagonal": lambda m, t, F: dict(tomfisher.fisher_diagonal(m, SAMPLES, progress=False)),
    "fisher_diagonal, all, sampled": lambda m, t, F: dict(
        tomfisher.fisher_diagonal(m, SAMPLES, params="all", labels="sampled", progress=False)
    ),
    "plan_fisher": lambda m, t, F: sorted(plan_fisher(m, SAMPLES).methods.items()),
    "masks": masks,
    "files": files,
    "summary": lambda m, t, F: [tuple(s) for s in summary(F, [1e-9]).values()],
    "encode": lambda m, t, F: [
        (s.input_ids, s.labels) for s in tomfisher.encode(t, stories(), supervise="all")
    ],
    "windows": lambda m, t, F: [
        s.input_ids
        for s in corpus.windows(t, corpus.Corpus("c", ("w1 w2 w3 w4 w5 w6 w7 w8 w9 " * 9,), "0"), 8, 4)
    ],
    "choice": lambda m, t, F: tomfisher.evaluate.score(m, t, stories(), progress=False).to_dict(),
    "generate": lambda m, t, F: tomfisher.evaluate.score(
        m, t, stories(), method="generate", temperature=0.6, top_p=0.9, repetitions=2, progress=False
    ).to_dict(),
    "perplexity": lambda m, t, F: tomfisher.evaluate.perplexity(
        m, t, "w1 w2 w3 w4 w9 w8 w7", window=4, progress=False
    ).to_dict(),
    "attention_sinks": lambda m, t, F: analysis.attention_sinks(
        m, prompts(), window=4, progress=False
    ).to_dict(),
    "rope_spectrum": lambda m, t, F: analysis.rope_spectrum(m, prompts(), progress=False).to_dict(),
    "mask_profile": lambda m, t, F: analysis.mask_profile(mask_of(m), m).to_dict(),
    "overlap": lambda m, t, F: analysis.overlap({"a": mask_of(m), "b": mask_of(m)}).to_dict(),
    "intervene": intervened,
    "perturb, mean": perturbed("mean"),
    "perturb, noise": perturbed("noise"),
    "perturb, scale": perturbed("scale:1.5"),
    "perturb, number": perturbed(0.1),
    "finetune_masked": tuned,
    "finetune_lora": tuned_lora,
}
_plain: dict[str, Any] = {}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.device == other.device
            and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", STATES)
def test_the_same_bits_whatever_is_switched_on(
    kind: str, name: str, model: Any, tokenizer: Any, F: Any
) -> None:
    if name not in _plain:
        _plain[name] = CALLS[name](model, tokenizer, F)
    drawn = torch.get_rng_state()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with STATES[kind]():
        there = state()
        found = CALLS[name](model, tokenizer, F)
        assert state() == there
    assert same(found, _plain[name])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", ["fisher_diagonal", "choice", "attention_sinks", "finetune_masked"])
def test_samples_and_prompts_made_in_inference_mode_are_fine(
    name: str, model: Any, tokenizer: Any, F: Any
) -> None:
    with torch.inference_mode():
        made, texts = make_samples(), [torch.tensor(p) for p in prompts()]
    calls: dict[str, Callable[[], Any]] = {
        "fisher_diagonal": lambda: dict(tomfisher.fisher_diagonal(model, made, progress=False)),
        "choice": lambda: CALLS["choice"](model, tokenizer, F),
        "attention_sinks": lambda: analysis.attention_sinks(model, texts, window=4, progress=False).to_dict(),
        "finetune_masked": lambda: finetune.finetune_masked(
            model, mask_of(model), made, steps=1, progress=False
        ).undo(),
    }
    assert same(calls[name](), CALLS[name](model, tokenizer, F) if name != "finetune_masked" else None)


def test_the_block_of_a_perturbation_runs_as_the_caller_set_it(model: Any) -> None:
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        there = state()
        with tomfisher.perturb(model, mask_of(model), fill="zero"):
            assert state() == there
        assert state() == there


def test_what_autocast_has_cached_of_a_weight_does_not_outlive_a_perturbation() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 8, bias=False)
    mask = SparseMask({"weight": torch.arange(32)}, {"weight": (8, 8)})
    x = torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = linear(x)
        with tomfisher.perturb(linear, mask, fill="zero"):
            assert not torch.equal(linear(x), before)
        assert torch.equal(linear(x), before)


def test_a_call_from_inside_a_transform_is_refused_in_words(model: Any, tokenizer: Any) -> None:
    def inside(x: Tensor) -> Tensor:
        tomfisher.evaluate.perplexity(model, tokenizer, "w1 w2 w3", progress=False)
        return x

    with pytest.raises(RuntimeError, match=r"inside a transform of torch\.func"):
        torch.func.vmap(inside)(torch.zeros(2))


def test_everything_is_put_back_after_an_error() -> None:
    with torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"), default_dtype(torch.float16):
        there = state()
        with pytest.raises(KeyError), plain_torch():
            assert state() == FRESH
            raise KeyError
        assert state() == there


def test_seeded_draws_the_same_and_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(3)
    torch.rand(2)
    drawn = torch.get_rng_state()
    with seeded(5):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), drawn)
    with seeded(5):
        assert torch.equal(torch.rand(4), first)
