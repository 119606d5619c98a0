"""One Fisher pass in a process of its own, streamed or resident: time, memory, bytes read and written.

python -m tomfisher.benchmarks.scale_pass JSON, with the fields of `Pass`; the last line printed is the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tomfisher.benchmarks import memory
from tomfisher.fisher import FisherDiagonal
from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.journal import unfinished_of
from tomfisher.sample import Sample

_IO = Path("/proc/self/io")
_EVERY_S = 0.01
STREAMED, RESIDENT = "streamed", "resident"


@dataclass(frozen=True)
class Pass:
    """What is run.

    Attributes:
        way: "streamed" or "resident".
        model: what `open_model` and `load_model` take.
        store: where F goes.
        samples: how many.
        tokens: of each.
        boundary: of a streamed pass: "auto", "ram" or a folder.
    """

    way: str
    model: str
    store: str
    samples: int
    tokens: int
    boundary: str = "auto"


def in_fresh_process(wanted: Pass) -> dict[str, Any]:
    """Run one in a process that has run nothing else.

    Returns:
        `seconds` from the closed model to the store, `load_seconds` of them until the model is open; `peak_bytes` above
        the interpreter with its imports, pages of mapped files included, and `peak_parts` of it when it was sampled;
        `hidden_bytes`, how large the file of hidden states got; `read`: bytes; `written`: bytes by purpose.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "tomfisher.benchmarks.scale_pass", json.dumps(asdict(wanted))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"The {wanted.way} pass over {wanted.model} failed: see above.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def samples_of(config: Any, samples: int, tokens: int) -> list[Sample]:
    """Random tokens, all supervised."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (samples, tokens), generator=generator)
    return [Sample(input_ids=row, labels=row) for row in ids]


def run_pass(wanted: Pass) -> dict[str, float]:
    """Open the model and write F.

    Returns:
        Seconds until the model was there, and in all.
    """
    from tomfisher import fisher_diagonal
    from tomfisher.models import load_model
    from tomfisher.models.opened import open_model

    start = time.perf_counter()
    source: Any
    if wanted.way == STREAMED:
        source = open_model(wanted.model)
        model = source.model
    elif Path(wanted.model).is_dir():  # random weights come without a tokenizer
        source = model = AutoModelForCausalLM.from_pretrained(wanted.model, dtype="auto")
    else:
        source = model = load_model(wanted.model, dtype="checkpoint", device="cpu").model
    loaded = time.perf_counter() - start
    samples = samples_of(model.config, wanted.samples, wanted.tokens)
    fisher_diagonal(source, samples, out=wanted.store, progress=False, boundary=wanted.boundary)
    return {"seconds": time.perf_counter() - start, "load_seconds": loaded}


def _measured(wanted: Pass) -> dict[str, Any]:
    written = {"F": 0, "files": 0, "journal": 0}
    store = Path(wanted.store)
    hidden = store.with_name(f"{store.name}.hidden-states")
    memory.reset_peak()
    before, read = memory.resident_bytes(), _counter("rchar")
    with _counted(written), _watched(hidden) as peaks:
        seconds = run_pass(wanted)
    calls = _counter("rchar") - read
    peak = memory.peak_bytes() - before
    found = json.loads((store / "fisher.json").read_text(encoding="utf-8")).get("streamed", {})
    return {
        **seconds,
        "F_bytes": sum(4 * values.numel() for values in FisherDiagonal.load(store, verify=False).values()),
        "peak_bytes": peak,
        "peak_parts": peaks["parts"],
        "interpreter_bytes": before,
        "hidden_bytes": peaks["hidden"],
        "journal_bytes": peaks["journal"],
        "read": {"weights": found.get("bytes_read"), "files": found.get("file_bytes"), "calls": calls},
        "written": written,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def _counted(written: dict[str, int]) -> Iterator[None]:
    """Add up what a growing store hands to the system: values of F, headers and records, journals."""
    ways = {"begin": "files", "write": "F", "commit": "journal", "finish": "files"}
    before = {name: vars(GrowingStore)[name] for name in ways}

    def counting(name: str) -> Any:
        call = before[name]
        plain = call.__func__ if isinstance(call, classmethod) else call

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = _counter("wchar")
            try:
                return plain(*args, **kwargs)
            finally:
                written[ways[name]] += _counter("wchar") - start

        return classmethod(counted) if isinstance(call, classmethod) else counted

    for name in ways:
        setattr(GrowingStore, name, counting(name))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(GrowingStore, name, call)


@contextmanager
def _watched(hidden: Path) -> Iterator[dict[str, Any]]:
    """Largest sizes, looked at all the time: what the resident memory is made of, the hidden states, the journal."""
    store = hidden.with_name(hidden.name.removesuffix(".hidden-states"))
    journal = unfinished_of(store) / "journal.safetensors"
    peaks: dict[str, Any] = {"total": 0, "parts": {}, "hidden": 0, "journal": 0}
    done = threading.Event()

    def look() -> None:
        parts = memory.resident_parts()
        if sum(parts.values()) > peaks["total"]:
            peaks.update(parts=parts, total=sum(parts.values()))
        peaks["hidden"] = max(peaks["hidden"], _size(hidden))
        peaks["journal"] = max(peaks["journal"], _size(journal))

    def watch() -> None:
        while not done.wait(_EVERY_S):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _counter(name: str) -> int:
    """Bytes that this process has read ("rchar") or written ("wchar") by system calls."""
    return int(_IO.read_text().split(f"{name}:")[1].split()[0])


def main() -> None:
    """Run the pass that the command line names."""
    import transformers.models.llama.modeling_llama  # noqa: F401  what every pass imports is the interpreter's

    import tomfisher.fisher.estimator
    import tomfisher.models.opened  # noqa: F401

    print(json.dumps(_measured(Pass(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
