"""Killing a streamed Fisher at random moments and beginning it again: the same bytes, and at most a layer lost a time.

python -m tomfisher.benchmarks.scale_kills JSON DEATHS, with the fields of `Pass`. The runs are forks of one process
that has imported everything and computed nothing, so that a run does not begin with seconds of imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tomfisher.benchmarks.scale_pass import Pass, run_pass
from tomfisher.fisher.growing import GrowingStore
from tomfisher.progress import progress_bar
from tomfisher.runtime.layerwise import Layers

_IN_A_ROW = 5  # deaths of one run before it may finish
_IN_SETUP = 0.2  # of the deaths, before a run has begun its first layer
_PATIENCE_S = 600.0  # for a run to begin its first layer
_RECORDS = "fisher.json"  # names how often the weights were read
_LAYER, _DONE, _FINISHING = "layer", "done", "finishing"


def in_fresh_process(wanted: Pass, deaths: int) -> dict[str, Any]:
    """Kill in a process that has computed nothing.

    Returns:
        `kills`; `phases`: how many by what was going on; `same_bytes`: whether every finished store had the bytes of
        one that was never killed; `layers_lost`: most layers that one death cost; `finished`: stores compared.

    Raises:
        RuntimeError: a run did not go on.
    """
    command = [
        sys.executable,
        "-m",
        "tomfisher.benchmarks.scale_kills",
        json.dumps(asdict(wanted)),
        str(deaths),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
    )
    if done.returncode:
        raise RuntimeError("A killed run did not go on: see above.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(case: dict[str, Any]) -> str:
    """Deaths by phase, and what they cost."""
    lines = [case["name"], f"  {case['finished']} stores compared: "]
    lines[-1] += "the same bytes as of a run that was never killed" if case["same_bytes"] else "OTHER BYTES"
    lines += [f"  {number:>5} killed {phase}" for phase, number in case["phases"].items()]
    lines.append(f"  most layers that one death cost: {case['layers_lost']} (bound 1)")
    return "\n".join(lines)


def kill(wanted: Pass, deaths: int) -> dict[str, Any]:
    """Kill runs of this pass until so many have died."""
    rng = random.Random(0)
    store, log = Path(wanted.store), Path(f"{wanted.store}.log")
    whole = replace(wanted, store=f"{wanted.store}-whole")
    start = time.monotonic()
    said = Path(f"{wanted.store}.stderr")
    process = _child(lambda: _logged(whole, log), said)
    _wait_for(log, 0)
    setup = time.monotonic() - start
    _expect(_status(process), said)
    work = time.monotonic() - start - setup
    log.unlink()
    expected = _files(Path(whole.store))
    phases: Counter[str] = Counter()
    lost = finished = 0
    same = True
    with progress_bar(total=deaths, desc="Kills", unit="death") as bar:
        while sum(phases.values()) < deaths:
            for _ in range(min(rng.randint(1, _IN_A_ROW), deaths - sum(phases.values()))):
                size = _size(log)
                process = _child(lambda: _logged(wanted, log), said)
                if rng.random() < _IN_SETUP:
                    time.sleep(rng.uniform(0, setup))
                else:
                    _wait_for(log, size)
                    time.sleep(rng.uniform(0, work))
                os.kill(process, signal.SIGKILL)
                if (status := _status(process)) != -signal.SIGKILL:
                    _expect(status, said)
                    break
                bar.update(1)
                phases[_phase(log)] += 1
                lost = max(lost, _begun(log))
                with log.open("a", encoding="utf-8") as file:
                    file.write("killed\n")
            _expect(_status(_child(lambda: _logged(wanted, log), said)), said)
            same = same and _files(store) == expected
            finished += 1
            shutil.rmtree(store)
            log.unlink()
    shutil.rmtree(whole.store)
    return {
        "kills": sum(phases.values()),
        "phases": dict(phases),
        "same_bytes": same,
        "finished": finished,
        "layers_lost": lost,
        "setup_seconds": setup,
        "work_seconds": work,
    }


def _logged(wanted: Pass, log: Path) -> None:
    """Run the pass, and write down every layer that begins and every step that is done."""

    def note(line: str) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    on, commit, finish = Layers.on, GrowingStore.commit, GrowingStore.finish

    def logged_on(self: Layers, number: int, following: int | None = None) -> Any:
        note(f"{_LAYER} {number}")
        return on(self, number, following)

    def logged_commit(self: GrowingStore, step: str, *args: Any, **kwargs: Any) -> None:
        commit(self, step, *args, **kwargs)
        note(f"{_DONE} {step}")

    def logged_finish(self: GrowingStore, *args: Any, **kwargs: Any) -> None:
        note(_FINISHING)
        finish(self, *args, **kwargs)

    Layers.on = logged_on  # type: ignore[method-assign]
    GrowingStore.commit = logged_commit  # type: ignore[method-assign]
    GrowingStore.finish = logged_finish  # type: ignore[method-assign]
    run_pass(wanted)


def _wait_for(log: Path, size: int) -> None:
    """Until the log is longer than that: the run has begun a layer, or has found all of them done."""
    end = time.monotonic() + _PATIENCE_S
    while _size(log) <= size:
        if time.monotonic() > end:
            raise RuntimeError("A run did not begin its first layer.")
        time.sleep(0.001)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def _phase(log: Path) -> str:
    """What was going on when the process died."""
    lines = _lines(log)
    own = lines[max((i + 1 for i, line in enumerate(lines) if line == "killed"), default=0) :]
    if _FINISHING in own:
        return "while the store was finished"
    if not own:
        return "while the run was set up"
    done = [line.removeprefix(f"{_DONE} ") for line in lines if line.startswith(f"{_DONE} ")]
    if own[-1].startswith(_LAYER):
        down = bool(done) and (done[-1] == "head" or done[-1].startswith("down"))
        return "in a layer, on the way down" if down else "in a layer, on the way up"
    return "between two layers"


def _begun(log: Path) -> int:
    """Layers that the last process began and had not done."""
    lines = _lines(log)
    own = lines[max((i + 1 for i, line in enumerate(lines) if line == "killed"), default=0) :]
    since = max((i + 1 for i, line in enumerate(own) if line.startswith(_DONE)), default=0)
    return sum(line.startswith(_LAYER) for line in own[since:])


def _files(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.iterdir()) if file.name != _RECORDS}


def _child(work: Callable[[], object], said: Path) -> int:
    """A fork that does this and ends; what it says on stderr is kept in a file."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
            work()
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(code)
    return process


def _status(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _expect(status: int, said: Path) -> None:
    if status:
        words = said.read_text(encoding="utf-8", errors="replace").strip() or "nothing"
        raise RuntimeError(f"A run ended with status {status}. It said: {words}")


def main() -> None:
    """Kill what the command line names."""
    import transformers.models.llama.modeling_llama  # noqa: F401  before the forks

    import tomfisher.fisher.estimator
    import tomfisher.models.opened  # noqa: F401

    print(json.dumps(kill(Pass(**json.loads(sys.argv[1])), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
