"""`masked_fill_mean_` and `scatter_` on a whole model's weights: first fill, later fills, undo.

The first fill has to read every weight once; what comes after touches the masked entries only. The floor of the
first fill, and the yardstick of the others, is the time of reading all weights once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.benchmarks import memory, models, plots
from tomfisher.benchmarks.harness import Contender, gathered, interleave, summary
from tomfisher.benchmarks.tables import SPEED, TIME, Column, render
from tomfisher.masks import SparseMask
from tomfisher.masks.fraction import count
from tomfisher.models.load import DTYPES, resolve_device
from tomfisher.ops import Impl, masked_fill_mean_, scatter_, weight_sums
from tomfisher.perturbation import Perturbation, WeightSums, perturb
from tomfisher.runtime import gpus

READ = "read all weights"
PERTURB, PERTURB_MODULE = "tomfisher perturb", "tomfisher perturb, of a module"
COLUMNS = (
    *TIME,
    SPEED,
    Column("x read", "times_floor.median", ".4f"),
    Column("extra mem.", "peak_extra_bytes", "MiB"),
)


@dataclass
class Model:
    """Weights, a mask on them, and what the contenders keep between a fill and its undo.

    Attributes:
        weights: one tensor per weight matrix.
        indices: sorted int64 positions in each.
        values: the masked entries as they were.
        sums: of `weight_sums`.
        means: of the unmasked entries, as Python numbers.
    """

    weights: list[Tensor]
    indices: list[Tensor]
    values: list[Tensor]
    sums: Tensor
    means: list[float]

    @property
    def flats(self) -> list[Tensor]:
        """The weights as vectors."""
        return [w.view(-1) for w in self.weights]

    @cached_property
    def perturbations(self) -> dict[str, Perturbation]:
        """The same through the public `perturb`, which knows the sums already: its later fills are measured."""
        module = nn.ModuleDict({"layers": nn.ModuleList(nn.Module() for _ in self.weights)})
        for holder, weight in zip(module["layers"].children(), self.weights, strict=True):
            holder.weight = nn.Parameter(weight, requires_grad=False)
        named = dict(module.named_parameters())
        shapes = {name: tuple(w.shape) for name, w in named.items()}
        mask, sums = SparseMask(dict(zip(named, self.indices, strict=True)), shapes), WeightSums()
        return {PERTURB: perturb(named, mask, sums=sums), PERTURB_MODULE: perturb(module, mask, sums=sums)}

    def restore(self) -> None:
        """Undo what the objects have written, then write the old values back for the methods that keep none."""
        for perturbation in self.perturbations.values():
            if perturbation.applied:
                perturbation.undo()
        scatter_(self.weights, self.indices, self.values)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every model and κ and return the record; without a GPU, print what would run."""
    if args.device is None and not torch.cuda.is_available():
        print(plan(args))
        return {}
    device = resolve_device(args.device)
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    names = args.model or ("llama3-8b" if device.type == "cuda" else "llama-135m,800M")
    settings = {"model": names, "dtype": dtype, "kappa": list(args.kappa), "rounds": args.rounds}
    cases = _cases(names, DTYPES[dtype], device, args)
    return gathered("masked_fill", settings, cases, device, args.cases_path)


def _cases(
    names: str, dtype: torch.dtype, device: torch.device, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for name in names.split(","):
        weights = make_weights(name, dtype, device)
        for kappa in args.kappa:
            yield from measure(name, weights, kappa, device, args.rounds)


def report(result: dict[str, Any]) -> str:
    """The record as tables."""
    return render(result["results"]["cases"], COLUMNS)


def plot(result: dict[str, Any], path: str) -> None:
    """Time over the time of reading all weights once."""
    cases = result["results"]["cases"]
    plots.bars(cases, path, "times_floor.median", "time / reading all weights", "masked_fill_mean_", line=1.0)


def shapes(name: str) -> list[tuple[int, int]]:
    """Weight shapes: of a name in `models.CONFIGS`, or of the synthetic "800M" (48 matrices of 4096 x 4096)."""
    return [(4096, 4096)] * 48 if name == "800M" else models.decoder_shapes(name)


def make_weights(name: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Normal weights of a model, each tensor with memory of its own."""
    generator = torch.Generator(device).manual_seed(0)
    made = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes(name)]
    for weight in made:
        weight.normal_(0.0, 0.02, generator=generator)
    return made


def make_model(weights: list[Tensor], kappa: float) -> Model:
    """A random mask of floor(κ·numel) entries per tensor."""
    generator = torch.Generator().manual_seed(0)
    indices = []
    for weight in weights:
        chosen: set[int] = set()
        while len(chosen) < count(kappa, weight.numel()):
            missing = count(kappa, weight.numel()) - len(chosen)
            chosen |= set(torch.randint(weight.numel(), (missing,), generator=generator).tolist())
        indices.append(torch.tensor(sorted(chosen), dtype=torch.int64, device=weight.device))
    values = [w.view(-1)[i] for w, i in zip(weights, indices, strict=True)]
    sums = weight_sums(weights)
    means = [
        (float(s) - float(v.double().sum())) / (w.numel() - v.numel())
        for s, v, w in zip(sums[:, 0], values, weights, strict=True)
    ]
    return Model(weights, indices, values, sums, means)


def measure(
    name: str, weights: list[Tensor], kappa: float, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """Three cases: first fill, later fill, undo."""
    model = make_model(weights, kappa)
    where = f"{name}, {sum(w.numel() for w in weights) / 1e6:.0f} M in {len(weights)}, κ = {kappa:g}"
    copies = [w.clone() for w in weights] if _fits(weights, device) else None
    for phase, (baseline, ways) in phases(model, device, copies).items():
        check(phase, ways, model)
        contenders = {READ: Contender(lambda: read(weights))}
        for way, do in ways.items():
            contenders[way] = Contender(
                do, _prepared(phase, way, model), peer=not way.startswith("tomfisher")
            )
        timings = interleave(contenders, rounds, device, desc=f"{where}: {phase}")
        model.restore()
        rows = summary(timings, baseline, READ)
        for way in [way for way in ways if way in rows]:
            _prepared(phase, way, model)()
            rows[way]["peak_extra_bytes"] = memory.peak_extra_bytes(ways[way], device)
            model.restore()
        absent = dict(timings.absent)
        if phase == "undo" and copies is None:
            absent["copy all weights back"] = "a second copy of the weights does not fit in memory"
        yield {
            "name": f"{phase}: {where}",
            "phase": phase,
            "kappa": kappa,
            "masked": sum(len(i) for i in model.indices),
            "baseline": baseline,
            "contenders": rows,
            "absent": absent,
        }


Way = Callable[[], object]


def phases(
    model: Model, device: torch.device, copies: list[Tensor] | None
) -> dict[str, tuple[str, dict[str, Way]]]:
    """Phase to its baseline and its contenders."""
    impls: tuple[Impl, ...] = ("triton" if device.type == "cuda" else "cpp", "reference")
    weights, indices, values, sums = model.weights, model.indices, model.values, model.sums
    first: dict[str, Way] = {}
    later: dict[str, Way] = {}
    undo: dict[str, Way] = {}
    for impl in impls:
        label = f"tomfisher {impl}"
        first[label] = _first(weights, indices, impl)
        later[label] = _later(weights, indices, sums, impl)
        undo[label] = _undo(weights, indices, values, impl)
    for label, perturbation in model.perturbations.items():
        later[label] = perturbation.apply
        undo[label] = perturbation.undo
    first["index loop"] = lambda: index_loop(model)
    first["boolean mask"] = lambda: boolean_mask(model)
    later["index loop"] = lambda: known_mean_loop(model)
    later["index_put_"] = lambda: index_put(model)
    undo["index loop"] = lambda: undo_loop(model)
    undo["index_put_"] = lambda: undo_index_put(model)
    if copies is not None:
        undo["copy all weights back"] = lambda: [w.copy_(c) for w, c in zip(weights, copies, strict=True)]
    return {
        "first fill": ("index loop", first),
        "later fill": ("index loop", later),
        "undo": ("index loop", undo),
    }


def read(weights: list[Tensor]) -> list[Tensor]:
    """Read every weight once: a sum per tensor, 16-bit values taken in pairs as float32."""
    return [(w.view(torch.float32) if w.element_size() == 2 else w).sum() for w in weights]


def index_loop(model: Model) -> list[Tensor]:
    """Per tensor: float64 sum of all minus sum of the masked, old values kept, mean written by indexing."""
    kept = []
    for flat, index in zip(model.flats, model.indices, strict=True):
        old = flat[index]
        total = flat.sum(dtype=torch.float64) - old.sum(dtype=torch.float64)
        flat[index] = (total / (flat.numel() - index.numel())).to(flat.dtype)
        kept.append(old)
    return kept


def boolean_mask(model: Model) -> list[Tensor]:
    """Per tensor, a dense boolean mask, as the definition is usually written."""
    kept = []
    for flat, index in zip(model.flats, model.indices, strict=True):
        keep = torch.ones(flat.numel(), dtype=torch.bool, device=flat.device)
        keep[index] = False
        mean = flat[keep].mean(dtype=torch.float64)
        kept.append(flat[index])
        flat[~keep] = mean.to(flat.dtype)
    return kept


def known_mean_loop(model: Model) -> list[Tensor]:
    """Per tensor: old values kept, a mean that is known written by indexing."""
    kept = []
    for flat, index, mean in zip(model.flats, model.indices, model.means, strict=True):
        kept.append(flat[index])
        flat[index] = mean
    return kept


def index_put(model: Model) -> list[Tensor]:
    """The same with `index_put_` and a vector of means."""
    kept = []
    for flat, index, mean in zip(model.flats, model.indices, model.means, strict=True):
        kept.append(flat[index])
        flat.index_put_((index,), flat.new_full((index.numel(),), mean))
    return kept


def undo_loop(model: Model) -> None:
    """Old values back by indexing."""
    for flat, index, old in zip(model.flats, model.indices, model.values, strict=True):
        flat[index] = old


def undo_index_put(model: Model) -> None:
    """Old values back by `index_put_`."""
    for flat, index, old in zip(model.flats, model.indices, model.values, strict=True):
        flat.index_put_((index,), old)


def check(phase: str, ways: dict[str, Way], model: Model) -> None:
    """Refuse to time a wrong result: a fill writes the mean, rounded; an undo restores every bit."""
    for name, way in ways.items():
        _prepared(phase, name, model)()
        way()
        for flat, index, old, mean in zip(model.flats, model.indices, model.values, model.means, strict=True):
            written = flat[index]
            if phase == "undo" and not torch.equal(written, old):
                raise RuntimeError(f"{name} does not restore the weights.")
            slack = 2 * torch.finfo(flat.dtype).eps * (abs(mean) + 0.02 / flat.numel() ** 0.5)
            if phase != "undo" and written.numel() and float((written.double() - mean).abs().max()) > slack:
                raise RuntimeError(f"{name} writes {written[0].item()}, the mean is {mean}.")
        model.restore()


def plan(args: argparse.Namespace) -> str:
    """What would run on a GPU, and the floors on a named one."""
    gpu = gpus.named(args.gpu)
    name = args.model or "llama3-8b"
    lines = [
        "No CUDA device here (--device cpu measures on the processor). With one, this benchmark times first fill,",
        "  later fills and undo: tomfisher triton, tomfisher reference, index loop, boolean mask, index_put_ and",
        f"  whole copies, in bf16. Floors on {gpu.name}:",
    ]
    for model in name.split(","):
        numel = sum(a * b for a, b in shapes(model))
        reading = 2 * numel / gpu.bandwidth
        lines.append(
            f"  {model}: {numel / 1e9:.2f} G weights in {len(shapes(model))} tensors, read {reading * 1e3:.2f} ms"
        )
        for kappa in args.kappa:
            # an index, an old value, and the two 32-byte sectors that a write to one entry touches
            moved = kappa * numel * (8 + 2 + 64)
            lines.append(
                f"    κ = {kappa:g}: {kappa * numel:,.0f} entries, later fill {moved / gpu.bandwidth * 1e6:.1f} µs"
            )
    return "\n".join(lines)


def _first(weights: list[Tensor], indices: list[Tensor], impl: Impl) -> Way:
    return lambda: masked_fill_mean_(weights, indices, sums=weight_sums(weights, impl=impl), impl=impl)


def _later(weights: list[Tensor], indices: list[Tensor], sums: Tensor, impl: Impl) -> Way:
    return lambda: masked_fill_mean_(weights, indices, sums=sums, impl=impl)


def _undo(weights: list[Tensor], indices: list[Tensor], values: list[Tensor], impl: Impl) -> Way:
    return lambda: scatter_(weights, indices, values, impl=impl)


def _prepared(phase: str, way: str, model: Model) -> Way:
    """What brings the weights into the state that `way` starts from."""

    def prepare() -> None:
        model.restore()
        if way in model.perturbations:
            with model.perturbations[
                way
            ]:  # the other contenders wrote to the weights: it has to read them again
                pass
        if phase == "undo":
            filled()

    def filled() -> None:
        if way in model.perturbations:
            model.perturbations[way].apply()
        else:
            known_mean_loop(model)

    return prepare


def _fits(weights: list[Tensor], device: torch.device) -> bool:
    return sum(w.numel() * w.element_size() for w in weights) < 0.8 * memory.available_bytes(device)
