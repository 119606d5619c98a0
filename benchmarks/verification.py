"""Which kernels have passed their GPU tests, on which GPU, and which have changed since.

A record holds checksums and what ran; it never says "verified". That is computed from the sources as they are now.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomfisher.files import sha256_of_file

RESULTS = Path(__file__).resolve().parent / "results"
NEVER = "not verified on a GPU"
_LAUNCH = "launch.py"
# parts of csrc/ (folders and prefixes of files) that one benchmark times and the others do not
_PARTS = ("fill", "fisher", "tests", "topk")
_TIMES: dict[str, tuple[str, ...]] = {
    "analysis": (),
    "choice": (),
    "fisher": ("fisher",),
    "growth": ("fisher", "topk"),
    "linear": (),
    "masked_fill": ("fill",),
    "squared_gradient": ("fisher",),
    "topk": ("topk",),
}


@dataclass(frozen=True)
class KernelStatus:
    """What is known about one kernel.

    Attributes:
        kernel: name of the `@triton.jit` function.
        file: where it is defined, relative to the kernels' folder.
        gpu: GPU of the latest tests that launched it and passed; "" without any.
        date: when that was.
        tests: how many tests launched it there.
        changed: files that the kernel depends on and whose checksum is another now.
    """

    kernel: str
    file: str
    gpu: str = ""
    date: str = ""
    tests: int = 0
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.gpu:
            return NEVER
        when = f"{self.gpu}, {self.date[:10]}, {self.tests} tests"
        return f"changed since ({', '.join(self.changed)}): {when}" if self.changed else f"verified: {when}"


def kernels_folder() -> Path:
    """Where the Triton kernels are installed."""
    return Path(importlib.import_module("tomfisher.kernels").__path__[0])


def kernel_sources_sha256(folder: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file of the kernels, and of the C++ sources where this is a checkout.

    Args:
        folder: of the Triton kernels; None is the installed one.

    Returns:
        "kernels/NAME.py" and "csrc/PATH" to 64 hexadecimal digits.
    """
    folder = folder or kernels_folder()
    files = {f"kernels/{file.name}": file for file in folder.glob("*.py")}
    csrc = folder.parent / "csrc"
    for file in csrc.rglob("*"):
        if file.suffix in (".cpp", ".h"):
            files[f"csrc/{file.relative_to(csrc).as_posix()}"] = file
    return {name: sha256_of_file(files[name]) for name in sorted(files)}


def load_records(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The records in a folder and below it by their path there, in that order."""
    files = sorted(folder.rglob("*.json"))
    return {str(file.relative_to(folder)): json.loads(file.read_text(encoding="utf-8")) for file in files}


def status(records: Iterable[Mapping[str, Any]], folder: Path | None = None) -> list[KernelStatus]:
    """What the records say about every kernel, judged by the sources as they are now.

    A kernel counts as tested on a GPU where a record of device type "cuda" holds GPU tests that launched it, none
    of which failed. The record with the fewest changed files counts; among equals the latest.

    Args:
        records: benchmark records.
        folder: of the Triton kernels; None is the installed one.

    Returns:
        One entry per kernel, in the order of files and names.
    """
    folder = folder or kernels_folder()
    now = kernel_sources_sha256(folder)
    kept = list(records)
    statuses = []
    for file, names in kernels(folder).items():
        needed = [f"kernels/{name}" for name in dependencies(folder, file)]
        for name in names:
            candidates = [s for s in (_judged(r, file, name, needed, now) for r in kept) if s is not None]
            candidates.sort(key=lambda s: (-len(s.changed), s.date))
            statuses.append(candidates[-1] if candidates else KernelStatus(name, file))
    return statuses


def report(records: Mapping[str, Mapping[str, Any]], folder: Path | None = None) -> str:
    """Two tables: the kernels with their verification, the records with the sources they were taken on."""
    rows = status(records.values(), folder)
    width = max(len(f"{row.file}: {row.kernel}") for row in rows)
    lines = ["Triton kernels"]
    lines += [f"  {f'{row.file}: {row.kernel}':{width}}  {row}" for row in rows]
    if not any(row.gpu for row in rows):
        lines.append(f"  No record of GPU tests: the kernels are {NEVER}.")
    lines += ["", "Records"]
    lines += [f"  {name:{width}}  {_taken_on(record, folder)}" for name, record in records.items()] or [
        "  none"
    ]
    return "\n".join(lines)


def kernels(folder: Path) -> dict[str, list[str]]:
    """File name to the kernels defined there: `@triton.jit` functions called `*_kernel`."""
    names_of = {}
    for file in sorted(folder.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and node.name.endswith("_kernel")
            and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        ]
        if names:
            names_of[file.name] = names
    return names_of


def dependencies(folder: Path, file: str) -> list[str]:
    """Files that a kernel's result depends on: its own, the launchers if it is in none, and all they import.

    A launcher is a file that imports `launch`.
    """
    imports = {path.name: _imports(path, folder) for path in folder.glob("*.py")}
    roots = [file]
    if _LAUNCH not in imports[file]:
        roots += [name for name, own in imports.items() if _LAUNCH in own and file in _closure(own, imports)]
    return sorted(_closure(roots, imports))


def _imports(path: Path, folder: Path) -> set[str]:
    """Files of the same folder that a file imports, as `.name`, `from . import name` or `tomfisher.kernels.name`."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = ("." if node.level else "") + (node.module or "")
        for package in (".", "tomfisher.kernels.", "tomfisher.kernels"):
            if module == package:
                files |= {f"{alias.name}.py" for alias in node.names}
            elif package.endswith(".") and module.startswith(package):
                files.add(f"{module.removeprefix(package).partition('.')[0]}.py")
    return {name for name in files if (folder / name).is_file()}


def _closure(roots: Iterable[str], imports: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    pending = list(roots)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += imports.get(name, ())
    return reached


def _judged(
    record: Mapping[str, Any], file: str, name: str, needed: list[str], now: Mapping[str, str]
) -> KernelStatus | None:
    if not str(record["machine"]["device"]).startswith("cuda"):
        return None
    tests = record["results"].get("gpu_tests", {})
    if tests.get("pytest", 0) not in (0, 1):  # killed or crashed: the test that did it is in no count
        return None
    counts = tests.get("kernels", {}).get(f"{file}:{name}")
    if not counts or counts["failed"] or not counts["passed"]:
        return None
    then = record.get("kernel_sources", {})
    changed = tuple(f for f in needed if then.get(f) != now.get(f))
    return KernelStatus(name, file, record["machine"]["gpu"], record["date"], counts["passed"], changed)


def _taken_on(record: Mapping[str, Any], folder: Path | None) -> str:
    machine = record["machine"]
    where = f"{machine.get('gpu') or machine['cpu']}, {record['date'][:10]}"
    then = record.get("kernel_sources")
    if then is None:
        return f"{where}; sources not recorded"
    now = kernel_sources_sha256(folder)
    changed = [f for f in {*then, *now} if then.get(f) != now.get(f) and _concerns(record, f, now)]
    return (
        f"{where}; {len(changed)} kernel sources changed since"
        if changed
        else f"{where}; sources as they are now"
    )


def _concerns(record: Mapping[str, Any], file: str, now: Mapping[str, str]) -> bool:
    """Whether a record depends on a source file: the GPU's and `host` on the kernels, the CPU's on parts of csrc/."""
    of_kernels = str(record["machine"]["device"]).startswith("cuda") or record["benchmark"] == "host"
    if file.startswith("kernels/") or of_kernels:
        return of_kernels and file.startswith("kernels/")
    if file not in now and not any(name.startswith("csrc/") for name in now):
        return False  # a wheel holds no csrc/ to compare with
    part = next((p for p in _PARTS if file.startswith((f"csrc/{p}/", f"csrc/{p}_"))), None)
    return part is None or part in _TIMES.get(record["benchmark"], _PARTS)
