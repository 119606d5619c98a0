"""A run that grows a small store of odd shapes; in forks of this process it is killed, begun again and compared."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tomfisher.fisher.growing import GrowingStore
from tomfisher.fisher.journal import is_unfinished
from tomfisher.fisher.store import write_store

RUN = {"model": "llama", "data": "abc", "seed": 0}
FACTS = {
    "num_samples": 3,
    "num_tokens": 40,
    "definition": {"labels": "empirical"},
    "methods": {"é": "captured"},
}
ODD = {
    "layers.10.weight": (7, 3),
    "layers.9.weight": (16, 5),
    "scalar": (),
    "empty": (0, 4),
    'é"\n\\\x7f': (3,),
    "narrow": (5, 0),
    "experts": (3, 4, 5),
    "large": (40, 25),
}
SHARD_BYTES = 300
DEATHS = 25


def values(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random numbers, always the same."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(
    path: Path, run: Mapping[str, Any] = RUN, shapes: Mapping[str, Any] = ODD, **kw: Any
) -> GrowingStore:
    """The store of `ODD` in several shards."""
    return GrowingStore.begin(path, shapes, run, shard_bytes=SHARD_BYTES, **kw)


def grow(path: Path, carried: int = 1, note: Callable[[str], None] = lambda line: None) -> None:
    """From the last tensor to the first in three steps, each of which needs what the step before left."""
    tensors, names = values(ODD), [*reversed(ODD)]
    steps = {f"step {first}": names[first : first + 3] for first in range(0, len(names), 3)}
    with begin(path) as store:
        assert list(store.carried) == store.done[-1:]
        assert list(store.facts) == store.done
        for step in [*steps][len(store.done) :]:
            note(f"begun {step}")
            for name in steps[step]:
                store.write(name, tensors[name])
            store.commit(step, {step: tensors[name].sum().expand(carried)}, {step: 1})
            note(f"done {step}")
        store.finish(FACTS)


def _log(path: Path) -> Path:
    return path.with_name("log")


def _grow_with_log(path: Path) -> None:
    def note(line: str) -> None:
        with _log(path).open("a") as log:
            log.write(f"{line}\n")

    grow(path, note=note)


def _repeated(path: Path) -> list[str]:
    """The steps that were begun again after they were done."""
    lines = _log(path).read_text().splitlines() if _log(path).exists() else []
    done = [line.removeprefix("done ") for line in lines if line.startswith("done ")]
    return [step for step in done if f"begun {step}" in lines[lines.index(f"done {step}") :]]


def _child(work: Callable[[], None]) -> int:
    """A process that does this and ends."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            sys.excepthook(*sys.exc_info()) if code else None  # type: ignore[arg-type]
            os._exit(code)
    return process


def _status(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _finish(target: Path, expected: Mapping[str, bytes]) -> None:
    """Begun again, the run ends as if nothing had happened, and no step that was done is done again."""
    complete = target.exists() and files(target) == expected and not is_unfinished(target)
    assert _status(_child(lambda: _grow_with_log(target))) == 0
    assert files(target) == expected
    left = [path.name for path in target.parent.iterdir() if path.name.startswith(target.name)]
    assert left == [target.name], left
    assert complete or not _repeated(target), _repeated(target)
    _log(target).unlink()
    shutil.rmtree(target)


def _grow_until(target: Path, call: int) -> None:
    """Grow, and die right before the call of that number that touches the disk."""
    left = [call]

    def count(event: str, _: object) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    _grow_with_log(target)


def at_every_call(target: Path, expected: Mapping[str, bytes]) -> int:
    """Kill at the first call that touches the disk, then at the second, until none is left; how many deaths."""
    call = 1
    while True:
        if call % 2:
            write_store({"old": torch.ones(3)}, FACTS, target)
        number = call
        status = _status(_child(lambda: _grow_until(target, number)))  # noqa: B023
        if status != -signal.SIGKILL:
            assert status == 0
            return call - 1
        _finish(target, expected)
        call += 1


def at_random(target: Path, expected: Mapping[str, bytes]) -> int:
    """Kill at random moments, up to three times in one run; how many deaths."""
    random.seed(0)
    start = time.monotonic()
    _finish(target, expected)
    taken = time.monotonic() - start
    deaths = 0
    while deaths < DEATHS:
        for _ in range(random.randint(1, 3)):
            if target.exists():  # it was done already
                break
            process = _child(lambda: _grow_with_log(target))
            time.sleep(random.uniform(0, taken))
            os.kill(process, signal.SIGKILL)
            deaths += _status(process) == -signal.SIGKILL
        _finish(target, expected)
    return deaths
