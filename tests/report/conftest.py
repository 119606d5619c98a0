"""A run folder whose every number is known, written by hand: no model is run."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from tomfisher.evaluate.statistics import wilson_interval
from tomfisher.results.results import Results
from tomfisher.results.row import rows_of

QUESTIONS = 40
KAPPAS = (1e-5, 1e-4, 1e-3)
RIGHT = {
    "none": (36,),
    "task-control": (34, 20, 8),
    "control-only": (36, 35, 33),
    "random": ((36, 35), (37, 34), (36, 36)),
}
PERPLEXITY = {
    "none": (10.0,),
    "task-control": (10.1, 10.2, 10.4),
    "control-only": (12.0, 30.0, 90.0),
    "random": ((10.0, 10.05), (10.1, 10.0), (10.2, 10.3)),
}
LAYERS, HEADS, PAIRS = 3, 2, 4
STATES = ("baseline", "task-control", "control-only", "random")


def score(right, p=None, n=QUESTIONS):
    return {"n": n, "accuracy": right / n, "ci95": list(wilson_interval(right, n)), "p_vs_baseline": p}


def point(mask, kappa, right, perplexity, seed=None, p=None):
    conditions = {
        "false-belief": score(right, p),
        "false-belief/reality": score(38, p and 1.0),
        "all": score(right + 38, p, 2 * QUESTIONS),
    }
    state = {"kappa": kappa, "mask": mask, "seed": seed, "nnz": 0 if mask == "none" else int(kappa * 1e7)}
    return rows_of({**state, "conditions": conditions, "perplexity": perplexity})


def build_results(model="tiny", task="stories", questions="a" * 64):
    rows = point("none", 0.0, RIGHT["none"][0], PERPLEXITY["none"][0])
    for i, kappa in enumerate(KAPPAS):
        p = (0.5, 1e-4, 1e-7)[i]
        rows += point("task-control", kappa, RIGHT["task-control"][i], PERPLEXITY["task-control"][i], p=p)
        rows += point("control-only", kappa, RIGHT["control-only"][i], PERPLEXITY["control-only"][i], p=1.0)
        for seed in (0, 1):
            right, perplexity = RIGHT["random"][i][seed], PERPLEXITY["random"][i][seed]
            rows += point("random", kappa, right, perplexity, seed, 1.0)
    provenance = {
        "command": ["tomfisher", "run", "--preset", "demo"],
        "config": make_config(model, task),
        "data": {"questions": questions},
        "evaluation": {"method": "choice", "chance": {"false-belief": 0.5}},
        "model": {"source": model, "num_parameters": 1234},
        "versions": {"tomfisher": "0", "torch": "2"},
    }
    return Results(tuple(rows), provenance)


def make_config(model="tiny", task="stories"):
    return {"model": model, "task": task, "control": "prose", "kappas": list(KAPPAS), "method": "choice"}


def norm(state, layer, head, pair, part):
    """Every norm different, so that a figure that mixes any two of them up is found out."""
    factor = {"baseline": 1.0, "task-control": 0.8, "control-only": 0.9, "random": 0.99}[state]
    return factor * (1 + pair + 10 * layer + 100 * head + (0.5 if part == "k" else 0.0))


def mass(state, layer, head):
    return (0.1 + 0.05 * layer + 0.02 * head) * {"baseline": 1, "task-control": 0.5}.get(state, 0.9)


def rope(state):
    layers = [
        {
            "layer": layer,
            "frequencies": [2 * math.pi / length for length in (6.5, 60.0, 700.0, 41000.0)],
            **{
                part: {
                    "norm": [
                        [norm(state, layer, head, pair, part) for pair in range(PAIRS)]
                        for head in range(HEADS)
                    ],
                    "dominant": [PAIRS - 1] * HEADS,
                }
                for part in ("q", "k")
            },
        }
        for layer in range(LAYERS)
    ]
    return {"prompts": 8, "tokens": 80, "context": 10, "bands": ["slow", "middle", "fast"], "layers": layers}


def sinks(state):
    layers = [
        {
            "layer": layer,
            "first_mass": [mass(state, layer, head) for head in range(HEADS)],
            "entropy": [1.0 + layer] * HEADS,
            "cosine": [0.1] * HEADS,
            "angle": [80.0 + layer + (5 if state == "task-control" else 0)] * HEADS,
            "key_norm": [2.0],
            "key_ratio": [0.5],
        }
        for layer in range(LAYERS)
    ]
    return {"prompts": 8, "tokens": 80, "layers": layers}


def change():
    bands = [[-0.1, -0.2, None], [-0.3, -0.4, None]]
    layers = [{"layer": layer, "bands": bands} for layer in range(LAYERS)]
    return {"rope": {"q": layers, "k": layers, "largest": []}}


def row_test(part, rows, head=None, layer=None, found=30, expected=10.0, p=0.001, pairs=None):
    return {
        "level": "head" if head is not None else "layer" if layer is not None else "model",
        "part": part,
        "rows": rows,
        "head": head,
        "layer": layer,
        "pairs": pairs,
        "found": found,
        "expected": expected,
        "fold": found / expected,
        **({"p_pairs": p / 2, "p_pairs_corrected": 2 * p} if head is None else {"p": p, "p_corrected": p}),
    }


def profile():
    parts = []
    for layer in range(LAYERS):
        for i, kind in enumerate(("q", "k", "v", "mlp.up_proj")):
            pairs = None
            if kind in ("q", "k"):
                pairs = [
                    [layer + 2 * head + pair * (i + 1) for pair in range(PAIRS)] for head in range(HEADS)
                ]
            masked = 10 * (layer + 1) + i
            parts.append(
                {
                    "layer": layer,
                    "kind": kind,
                    "group": "qk" if i < 2 else "vo" if i == 2 else "mlp",
                    "tensor": f"layers.{layer}.{kind}.weight",
                    "masked": masked,
                    "weights": 1000,
                    "heads": None,
                    "pairs": pairs,
                }
            )
    group = {"group": "qk", "masked": 123, "weights": 6000, "share": 0.55, "weight_share": 0.5, "fold": 1.1}
    heads = [
        row_test(
            part, "dominant", head, layer, pairs=[head + 1], found=5 + 6 * head, p=0.01 if layer else 0.5
        )
        for part in ("q", "k")
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    matrix = {
        "kind": "q_proj",
        "matrices": LAYERS,
        "masked": 20.0,
        "rows": 5.0,
        "rows_expected": 17.0,
        "columns": 6.0,
        "columns_expected": 18.0,
        "effective_rank": 3.5,
        "effective_rank_random": 15.5,
        "full_rank": 32.0,
    }
    return {
        "nnz": 258,
        "numel": 12000,
        "groups": [group],
        "parts": parts,
        "enrichment": {
            "dominant_pairs": 1,
            "context": 10,
            "model": [row_test(part, rows) for rows in ("dominant", "slow") for part in ("q", "k")],
            "layers": [
                row_test(
                    part, rows, None, layer, found=5 + 6 * layer, p=0.01 if rows == "slow" or layer else 0.5
                )
                for rows in ("dominant", "slow")
                for part in ("q", "k")
                for layer in range(LAYERS)
            ],
            "heads": heads,
        },
        "sparsity": [matrix],
        "unavailable": {},
    }


def make_inside():
    maps = {
        f"1.{head}": {
            "baseline": [[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.5, 0.25, 0.25]],
            "task-control": [[1.0, 0.0, 0.0], [0.3, 0.7, 0.0], [0.1 + head / 10, 0.4, 0.5 - head / 10]],
            "tokens": ["<s>", "$a$", "b"],
        }
        for head in range(HEADS)
    }
    return {
        "kappa": KAPPAS[-1],
        "prompts": 8,
        "tokens": 80,
        "baseline": {"rope": rope("baseline"), "sinks": sinks("baseline"), "unavailable": {}},
        "states": {
            state: {"rope": rope(state), "sinks": sinks(state), "change": change(), "unavailable": {}}
            for state in STATES[1:]
        },
        "profile": profile(),
        "maps": maps,
        "unavailable": {},
    }


def make_values():
    """Two tensors per Fisher; their histograms overlap in [2**-8, 2**-6)."""

    def tensor(first, counts, zeros):
        numel = sum(counts) + zeros
        fields = {"numel": numel, "zeros": zeros, "negative": 0, "subnormal": 0}
        low = 0.0 if zeros else 1.5 * 2.0**first
        return {
            **fields,
            "min": low,
            "max": 1.5 * 2.0 ** (first + len(counts) - 1),
            "histogram": {"first": first, "counts": counts},
        }

    def fisher(samples, shift):
        tensors = {
            "a.weight": tensor(-10 + shift, [5, 0, 900, 40], 55),
            "b.weight": tensor(-8 + shift, [100, 700, 100, 90, 10], 0),
        }
        thresholds = [
            {"kappa": kappa, "least": 2.0**-i, "median": 1.25 * 2.0**-i, "most": 1.75 * 2.0**-i}
            for i, kappa in enumerate(KAPPAS, start=5 - shift)
        ]
        return {"num_samples": samples, "scope": "tensor", "tensors": tensors, "thresholds": thresholds}

    return {"task": fisher(30, 0), "control": fisher(40, 2)}


def make_ablations():
    def entry(name, right, seed=None):
        fields = {
            "kappa": 1e-3, "mask": "random", "seed": seed, "nnz": 10, "perplexity": 11.0 if name else 10.0,
            "conditions": {"false-belief": score(right, 0.01), "all": score(right, 0.01)},
        }  # fmt: skip
        return {**fields, "name": name, "interventions": [name], "control": seed is not None}

    points = [entry("qk", 12), entry("qk", 35, 0), entry("qk", 33, 1), entry("mlp", 30)]
    return {"baseline": entry("", 36), "points": points, "left_out": {"mixer": "no such layer"}}


@pytest.fixture
def results():
    return build_results()


@pytest.fixture
def make_results():
    return build_results


@pytest.fixture
def inside():
    return make_inside()


@pytest.fixture
def values():
    return make_values()


@pytest.fixture
def ablations():
    return make_ablations()


def build_run(folder, results=None, **files):
    """A run folder; files that are None are not written, Fisher values are written unless they are None."""
    folder.mkdir()
    files = {"fisher-values": make_values(), **files}
    results = results or build_results()
    results.save(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(results.provenance["config"]))
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, results=..., inside=..., ablations=...)`: a run folder."""

    def make(name="run", results=None, inside=None, **extras):
        return build_run(tmp_path / name, results, analysis=inside, **extras)

    return make


@pytest.fixture
def run(make_run, inside, ablations):
    return make_run(inside=inside, ablations=ablations)


@pytest.fixture(scope="module")
def module_run(tmp_path_factory):
    """The same run, once for all tests of a module."""
    folder = tmp_path_factory.mktemp("module") / "run"
    return build_run(folder, analysis=make_inside(), ablations=make_ablations())
