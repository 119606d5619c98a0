"""The preset on two of its models, shortened: runs, table, reports of each run and of the folder above them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tomfisher import testbed
from tomfisher.cli.main import main
from tomfisher.report import load, plot_architectures, write
from tomfisher.report.style import STATES
from tomfisher.results import Results
from tomfisher.results.architecture_folder import above, is_folder, read
from tomfisher.results.folder import EXTRAS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures_of_module")]
NAMES, KAPPAS = ("llama", "mamba"), (0.01, 0.05)
FLAGS = {
    "n_task": 4, "n_control": 4, "control_length": 16, "kappas": "0.01,0.05", "random_seeds": 2, "limit": 24,
    "perplexity_tokens": 128, "perplexity_window": 64, "analysis_prompts": 2, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder after `tomfisher run --preset architectures`."""
    folder = tmp_path_factory.mktemp("preset") / "runs"
    flags = [text for key, value in FLAGS.items() for text in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testbed, "ARCHITECTURES", NAMES)
        assert main(["run", "--preset", "architectures", "--output_path", str(folder), *flags]) == 0
    return folder


@pytest.fixture
def folder(done, tmp_path, monkeypatch):
    """A copy of it without its reports."""
    monkeypatch.setattr(testbed, "ARCHITECTURES", NAMES)
    copy = tmp_path / "runs"
    shutil.copytree(done, copy, ignore=shutil.ignore_patterns("report.html", "figures", "fisher"))
    return copy


def test_the_preset_writes_a_report_of_every_run_and_one_of_all(done):
    for place in (done, *(done / name for name in NAMES)):
        assert (place / "report.html").read_text().startswith("<!doctype html>")
        drawn = {file.name for file in (place / "figures").iterdir()}
        assert {"architectures.svg", "architectures.png"} <= drawn <= set(EXTRAS["figures"])
    text = (done / "report.html").read_text()
    assert "of 2 architectures." in text and "All architectures at equal κ</h3>" in text
    assert f"tomfisher run --preset architectures --output_path {done}" in text
    inside = (done / "mamba" / "report.html").read_text()
    assert "The same study on other architectures</h3>" in inside and "κ = 0.05: Llama" in inside


def test_report_of_the_folder_says_the_verdict_and_what_is_missing(folder, capsys, monkeypatch):
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "of 2 architectures." in out and "trained once with one seed" in out
    assert f"Report:  {folder}/report.html" in out and "not in the report" not in out
    (folder / "mamba" / "results.json").unlink()
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "of 1 architectures." in out and f"mamba. The run in {folder}/mamba is not finished" in out
    assert f"tomfisher run --preset architectures --output_path {folder} does what is left" in out
    (folder / "llama" / "results.json").write_text("{")
    assert main(["report", str(folder)]) == 2
    assert "holds no finished study of an architecture" in capsys.readouterr().err
    assert main(["report", str(folder), str(folder / "llama")]) == 2
    assert "or one of its run folders" in capsys.readouterr().err


def test_the_figure_shows_every_architecture_at_every_common_kappa(folder):
    found = read(folder)
    figure, panels = plot_architectures(found)
    figure.canvas.draw()
    assert [axis.get_title() for axis in panels] == ["κ = 0.01", "κ = 0.05"]
    results = {name: Results.load(folder / name) for name in NAMES}
    for axis, kappa in zip(panels, KAPPAS, strict=True):
        rows = [results[name].at(kappa, "task-control")[0] for name in NAMES]
        (drawn,) = [c for c in axis.containers if c.get_label() == STATES["task-control"].label]
        assert drawn.lines[0].get_ydata().tolist() == [row.accuracy for row in rows]
        bars = [segment[:, 1] for segment in drawn.lines[2][0].get_segments()]
        assert np.allclose(bars, [row.ci95 for row in rows])
        (ranges,) = [c for c in axis.collections if c.get_alpha() == 0.45]
        for segment, name in zip(ranges.get_segments(), NAMES, strict=True):
            values = [row.accuracy for row in results[name].at(kappa, "random")]
            assert segment[:, 1].tolist() == [min(values), max(values)]
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["Llama", "Mamba"]
    with pytest.raises(ValueError, match="The 0 studies have no kappa in common"):
        plot_architectures([])


def test_the_report_follows_the_runs_and_not_a_table_of_earlier_ones(folder):
    before = read(folder)
    file = folder / "llama" / "results.json"
    data = json.loads(file.read_text())
    for point in data["points"]:
        if point["mask"] == "task-control":
            point["conditions"]["false-belief"]["accuracy"] = 0.125
    file.write_text(json.dumps(data))
    after = read(folder)
    assert after.outcomes[0].after().accuracy == 0.125
    assert after.outcomes[1] == before.outcomes[1] and after.record == before.record
    assert "0.125 [" in write(folder).read_text()


def test_runs_that_asked_other_questions_are_said_to(folder):
    file = folder / "llama" / "results.json"
    data = json.loads(file.read_text())
    data["provenance"]["data"]["questions"] = "0" * 64
    file.write_text(json.dumps(data))
    assert "did not all ask the same questions" in write(folder).read_text()


def test_only_runs_of_the_preset_make_such_a_folder(folder, tmp_path):
    assert is_folder(folder) and above(folder / "mamba") == folder
    assert not is_folder(folder / "mamba") and above(folder) is None
    config = folder / "mamba" / "config.yaml"
    config.write_text(config.read_text().replace("testbed2-mamba", "mamba-130m"))
    assert above(folder / "mamba") is None and load(folder / "mamba").architectures is None
    assert load(folder / "llama").architectures is None  # alone
    assert not is_folder(tmp_path / "nowhere")
