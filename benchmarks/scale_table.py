"""The memory table of docs/scale.md, from the same arithmetic as `tomfisher plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tomfisher.benchmarks.models import without_weights
from tomfisher.files import atomic_path
from tomfisher.fisher.footprint import LAYER, OUTSIDE, WHOLE, footprint
from tomfisher.fisher.sizes import Sizes, sizes_of
from tomfisher.fisher.way import Way, Work
from tomfisher.fisher.ways import lacking
from tomfisher.runtime.gpus import named
from tomfisher.runtime.machine import Machine

MODELS = {"Llama-3-8B": "llama3-8b", "Llama-3-70B": "llama3-70b", "DeepSeek-V3": "deepseek-v3"}
BEGIN, END = "<!-- memory table: make scale-table -->", "<!-- end of the memory table -->"
DEVICES = 8
WAYS = {
    "resident": Way(),
    "resident, tensor parallel over 8": Way(tensor=DEVICES),
    "resident, weights sharded over 8": Way(samples=DEVICES, shards=DEVICES),
    "streamed, reading ahead": Way(stream=True),
    "streamed, nothing read ahead": Way(stream=True, prefetch=False),
    "streamed, reading ahead, experts split over 8": Way(stream=True, samples=DEVICES, experts=DEVICES),
}


def held(sizes: Sizes, way: Way, stage: str | None = None) -> float:
    """Bytes of weights and float32 sums that a rank holds, at that stage of a streamed run."""
    machine = Machine(memory=80 * 10**9, devices=DEVICES, gpu=named("h100"))
    return (
        footprint(sizes, way, machine, Work(tokens_per_batch=128))
        .stages[stage or (LAYER if way.stream else WHOLE)]
        .held
    )


def memory_table() -> str:
    """The table, as Markdown."""
    models = {name: sizes_of(without_weights(config)) for name, config in MODELS.items()}
    return "\n".join(_lines(models))


def _lines(models: dict[str, Sizes]) -> Iterator[str]:
    yield "| GB | " + " | ".join(models) + " | today |"
    yield "| --- |" + " ---: |" * len(models) + " --- |"
    yield _row("the largest layer, W / F", models, lambda sizes: _pair(*_layer(sizes)), "")
    yield _row("all W / all F", models, lambda sizes: _pair(sizes.model_bytes, sizes.fisher_bytes), "")
    for name, way in WAYS.items():
        today = _today(way)

        def cell(sizes: Sizes, way: Way = way) -> str:
            return "" if way.experts > 1 and not sizes.expert_layers else _gb(held(sizes, way))

        yield _row(name, models, cell, today)

    def outside(sizes: Sizes) -> str:
        return _gb(held(sizes, Way(stream=True), OUTSIDE))

    yield _row("the same at the embeddings and the head", models, outside, _today(Way(stream=True)))


def _today(way: Way) -> str:
    if lacking(way, on_gpu=False):
        return "not supported yet"
    return "on the CPU" if lacking(way, on_gpu=True) else "yes"


def _row(name: str, models: dict[str, Sizes], cell: Callable[[Sizes], str], today: str) -> str:
    return f"| {name} | " + " | ".join(cell(sizes) for sizes in models.values()) + f" | {today} |"


def _layer(sizes: Sizes) -> tuple[float, float]:
    return sizes.itemsize * sizes.widest.parameters, 4 * sizes.widest.selected


def _pair(weights: float, fisher: float) -> str:
    return f"{_gb(weights)} / {_gb(fisher)}"


def _gb(size: float) -> str:
    value = size / 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def written(page: str, table: str) -> str:
    """The page with this table between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"The page must hold the lines {BEGIN!r} and {END!r}, between which the table goes.")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the table into docs/scale.md."""
    path = Path("docs/scale.md")
    page = written(path.read_text(encoding="utf-8"), memory_table())
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
