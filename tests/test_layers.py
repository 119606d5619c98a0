"""The plan of the house: imports point down, go round in no circle, and leave other packages' private names alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import tomfisher

# Modules beside the packages, which know nothing of models: files, text, progress, what torch is set to.
BASE = (
    *("files", "locks", "near_miss", "plugins", "progress", "provenance"),
    *("sample", "tensor_files", "text_files", "tokens", "unknown", "version", "writing"),
)
# From top to bottom. A package imports from the rows below its own; those in one row do not know one another.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("benchmarks",),
    ("__init__",),
    ("studies",),
    ("report",),
    ("results",),
    ("interventions", "finetune"),
    ("analysis",),
    ("evaluate", "testbed"),
    ("perturbation", "merging"),
    ("fisher", "masks"),
    ("tasks",),
    ("models",),
    ("runtime",),
    ("ops",),
    ("kernels", "_C"),
    BASE,
)
RANK = {package: rank for rank, row in enumerate(LAYERS) for package in row}

ROOT = Path(tomfisher.__file__).parent
# installed as tomfisher.kernels and tomfisher.benchmarks
INSTALLED = (ROOT.parent / "kernels", ROOT.parent / "benchmarks")


def _module(path: Path) -> str:
    parts = path.with_suffix("").relative_to(ROOT if ROOT in path.parents else ROOT.parent).parts
    return ".".join(("tomfisher", *(part for part in parts if part != "__init__")))


FILES = {_module(path): path for folder in (ROOT, *INSTALLED) for path in sorted(folder.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def _imports(module: str) -> Iterator[tuple[str, str | None]]:
    """Each module of ours that `module` names in an import, wherever that stands, and the name taken from it."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner, None) if inner in FILES else (source, alias.name)


def _package(module: str) -> str:
    _, package, *_ = *module.split("."), "__init__"
    return package


ARROWS = {
    module: {
        target for target, _ in _imports(module) if target.split(".")[0] == "tomfisher" and target != module
    }
    for module in FILES
}


def test_every_package_has_its_place_in_one_row() -> None:
    assert {_package(module) for module in FILES} <= RANK.keys()
    assert len(RANK) == sum(map(len, LAYERS))


def test_imports_point_down() -> None:
    wrong = {
        f"{module} -> {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if _package(module) != _package(target)
        and RANK[_package(module)] >= RANK[_package(target)]
        and not {_package(module), _package(target)} <= set(BASE)
    }
    assert not wrong


def test_no_circle_of_imports() -> None:
    left = {module: {target for target in targets if target in FILES} for module, targets in ARROWS.items()}
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    # what is left imports a circle; of that, what a circle imports in turn
    while ends := {module for module in left if not any(module in targets for targets in left.values())}:
        left = {module: targets for module, targets in left.items() if module not in ends}
    assert not left


def _is_private(name: str) -> bool:
    return name.startswith("_") and name != "_C" and not name.endswith("__")


def _private_attributes(module: str) -> Iterator[tuple[str, str]]:
    """Each `other._name` that a file reads, `other` being a module of ours that it has imported by that name."""
    known = {target.rpartition(".")[2]: target for target, name in _imports(module) if name is None}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            source = known.get(getattr(node.value, "id", ""))
            if source is not None:
                yield source, node.attr


def test_private_names_stay_in_their_package() -> None:
    wrong = {
        f"{module} -> {target}{'.' + name if name else ''}"
        for module in FILES
        for target, name in (*_imports(module), *_private_attributes(module))
        if target.startswith("tomfisher.")
        and _package(module) != _package(target)
        and any(map(_is_private, (*target.split("."), name or "")))
    }
    assert not wrong
