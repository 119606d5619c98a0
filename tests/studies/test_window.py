"""A model whose context is shorter than the usual window of the perplexity: 256 tokens (`tiny_model`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tomfisher.cli.main import main
from tomfisher.results import Results
from tomfisher.studies import Config, Experiment
from tomfisher.studies.claim import claimed


@pytest.fixture
def settings(tiny_settings):
    del tiny_settings["perplexity_window"]
    return {
        **tiny_settings,
        "kappas": [0.05],
        "random_seeds": 0,
        "perplexity_tokens": 500,
        "analysis_prompts": 0,
    }


def flags(settings, *names):
    chosen = {name: settings[name] for name in names or settings}
    return [
        word
        for name, value in chosen.items()
        for word in (f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value))
    ]


def run(settings):
    return Experiment(Config.from_dict(settings)).run(progress=False)


def test_the_default_is_the_context_of_the_model(settings):
    results = run(settings)
    assert results.provenance["evaluation"]["perplexity_window"] == 256
    again = run({**settings, "perplexity_window": 256, "output_path": settings["output_path"] + "2"})
    assert results.baseline().perplexity == again.baseline().perplexity


@pytest.mark.parametrize("command", ["run", "plan", "evaluate"])
def test_a_larger_window_is_refused_before_anything_is_computed(settings, command, capsys, monkeypatch):
    for work in (
        "tomfisher.fisher.fisher_diagonal",
        "tomfisher.fisher.plan.plan_fisher",
        "tomfisher.studies.measure.Measure.score",
    ):
        monkeypatch.setattr(work, lambda *args, **kwargs: pytest.fail("computed"))
    given = flags(settings)
    if command == "evaluate":
        given = flags(settings, "model", "task", "control", "perplexity_tokens", "device")
    assert main([command, *given, "--perplexity_window", "300"]) == 2
    assert "--perplexity_window 300 is larger than the model's context of 256" in capsys.readouterr().err


def test_a_stride_beyond_the_window_is_refused(settings):
    with pytest.raises(ValueError, match="--perplexity_stride 300"):
        run({**settings, "perplexity_stride": 300})
    assert not (Path(settings["output_path"]) / "fisher").exists()


def test_folders_of_older_versions_say_512_for_the_default(settings):
    with claimed(Config.from_dict({**settings, "perplexity_window": 512})) as folder:
        folder.store_path("task").mkdir(parents=True)
    with claimed(Config.from_dict(settings)):
        pass
    with pytest.raises(ValueError, match="perplexity_window: was 512, now 256"):
        claimed(Config.from_dict({**settings, "perplexity_window": 256})).__enter__()


def test_a_refused_folder_names_its_stores_where_only_the_measuring_differs(settings, tmp_path, capsys):
    run(settings)
    folder = settings["output_path"]
    keep = f"--task_store {folder}/fisher/task --control_store {folder}/fisher/control"
    with pytest.raises(ValueError, match="other settings") as caught:
        run({**settings, "perplexity_window": 100})
    assert keep in str(caught.value)
    with pytest.raises(ValueError, match="other settings") as caught:
        run({**settings, "perplexity_window": 100, "seed": 3})
    assert "_store" not in str(caught.value)
    other = {**settings, "perplexity_window": 100, "output_path": str(tmp_path / "kept")}
    assert main(["run", *flags(other), *keep.split()]) == 0
    assert not (tmp_path / "kept/fisher").exists() and Results.load(tmp_path / "kept").kappas
