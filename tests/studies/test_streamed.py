"""A study of a model whose layers come and go has the files of one in memory that answers in whole rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from bits import same_bits
from tomfisher import FisherDiagonal, SparseMask, report
from tomfisher.cli.main import main
from tomfisher.models.opened import is_streamed
from tomfisher.results.row import RANDOM, TASK_CONTROL, point_key
from tomfisher.runtime.positions import position_limit
from tomfisher.studies import Config, Experiment
from tomfisher.studies.named_model import named_model
from training import some_mask


def run(settings: dict[str, Any], folder: Path, **changes: Any) -> Path:
    path = folder / "-".join(map(str, changes.values()))
    Experiment(settings | {"output_path": str(path), "analysis_prompts": 0} | changes).run(progress=False)
    return path


def results(folder: Path) -> Any:
    """`results.json` without times, the way of the run and what only a run from files says."""
    found = json.loads((folder / "results.json").read_text())
    provenance = found["provenance"]
    del provenance["time"], provenance["command"]
    for name in ("stream", "share_prefix", "task_store", "control_store"):
        del provenance["config"][name]
    for name in ("headers_sha256", "content_sha256", "files"):
        provenance["model"].pop(name, None)
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def resident(tiny_settings: dict[str, Any], kept: dict[str, Path], tmp_path_factory: Any) -> Path:
    """A run in memory, made once."""
    if "run" not in kept:
        kept["run"] = run(tiny_settings, tmp_path_factory.mktemp("resident"), share_prefix="no")
    return kept["run"]


def stores(resident: Path) -> dict[str, str]:
    return {f"{which}_store": str(resident / "fisher" / which) for which in ("task", "control")}


@pytest.mark.slow
def test_a_streamed_sweep_has_the_table_of_the_resident_one(
    tiny_settings: dict[str, Any], resident: Path, tmp_path: Path
) -> None:
    folder = run(tiny_settings | stores(resident), tmp_path, stream="yes")
    for name in ("results.csv", "verdict.txt"):
        assert (folder / name).read_bytes() == (resident / name).read_bytes()
    expected, found = results(resident), results(folder)
    del expected["provenance"]["data"]["task"]  # hashed where the samples were made
    assert found == expected
    for point in (resident / "points").iterdir():
        assert (folder / "points" / point.name).read_bytes() == point.read_bytes()


@pytest.mark.slow
def test_a_streamed_run_has_the_files_of_the_resident_one(
    tiny_settings: dict[str, Any], resident: Path, tmp_path: Path
) -> None:
    folder = run(tiny_settings, tmp_path, stream="yes")
    for which in ("task", "control"):
        expected, found = (FisherDiagonal.load(place / "fisher" / which) for place in (resident, folder))
        assert same_bits(dict(found), dict(expected))
    for name in ("results.csv", "verdict.txt", "fisher-values.json"):
        assert (folder / name).read_bytes() == (resident / name).read_bytes()
    assert report.write(folder).is_file()


@pytest.mark.slow
def test_a_streamed_sweep_resumes(tiny_settings: dict[str, Any], resident: Path, tmp_path: Path) -> None:
    settings = tiny_settings | stores(resident)
    folder = run(settings, tmp_path, stream="yes")
    before = results(folder)
    for key in (point_key(RANDOM, 0.05, 3), point_key(TASK_CONTROL, 0.01)):
        (folder / "points" / f"{key}.json").unlink()
    said: list[str] = []
    config = Config.from_dict(
        settings
        | {"output_path": str(folder), "analysis_prompts": 0, "stream": "yes", "boundary": str(tmp_path)}
    )
    Experiment(config, say=said.append).run(progress=False)
    assert results(folder) == before
    assert any("measuring 2 points" in line for line in said)
    with pytest.raises(ValueError, match="stream"):
        Experiment(settings | {"output_path": str(folder), "stream": "no"}).run(progress=False)


@pytest.mark.slow
def test_evaluate_reads_the_files(
    tiny_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tomfisher.models import load_model

    mask = some_mask(load_model(tiny_settings["model"], "fp32", "cpu").model)
    mask.save(tmp_path / "mask.safetensors")
    names = ("model", "task", "control", "limit", "perplexity_tokens", "perplexity_window")
    flags = [part for name in names for part in (f"--{name}", str(tiny_settings[name]))]
    flags += ["--mask", str(tmp_path / "mask.safetensors"), "--dtype", "fp32"]
    found = []
    for way in (["--share_prefix", "no", "--device", "cpu"], ["--stream"]):
        file = tmp_path / f"{len(found)}.json"
        assert main(["evaluate", *flags, *way, "--output_path", str(file)]) == 0
        found.append(json.loads(file.read_text()))
    for each in found:
        del each["model"]
    assert found[0] == found[1]
    assert found[0]["masked"]["nnz"] == SparseMask.load(tmp_path / "mask.safetensors").nnz


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "generate"], "Generating needs the whole model in memory"),
        (["--analysis_prompts", "3"], "--analysis_prompts needs the whole model in memory"),
        (["--device", "cuda"], "stream runs on the CPU"),
    ],
)
def test_what_needs_the_whole_model_says_so(
    tiny_settings: dict[str, Any], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model", tiny_settings["model"], "--stream", *flags]) == 2
    assert message in capsys.readouterr().err


def test_learned_positions_are_known_before_the_weights_leave(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "roberta"
    config = tf.RobertaConfig(
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
        is_decoder=True,
    )
    tf.RobertaForCausalLM(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(tiny_settings["model"]).save_pretrained(folder)
    loaded = named_model(Config.from_dict({"model": str(folder), "stream": "yes"}), "fp32", None)
    assert is_streamed(loaded.model)
    assert position_limit(loaded.model) == 64  # two rows of the table are in front of the first token's


def test_a_folder_for_hidden_states_has_to_be_there(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    config = Config.from_dict(tiny_settings | {"stream": "yes", "boundary": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="there is no folder"):
        named_model(config, "fp32", None)


@pytest.mark.slow
def test_a_preset_streamed_prints_the_table_of_the_resident_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"limit": 24, "n_task": 8, "n_control": 8, "kappas": 3e-2, "random_seeds": 1}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    flags += ["--preset", "demo-testbed", "--perplexity_tokens", "512", "--device", "cpu"]
    printed = []
    for way in (["--share_prefix", "no", "--analysis_prompts", "0"], ["--stream"]):
        assert main(["run", *flags, *way, "--output_path", f"run{len(printed)}"]) == 0
        printed.append(capsys.readouterr())
    assert printed[1].out == printed[0].out.replace("run0", "run1")
    assert "no analysis: it looks into the layers" in printed[1].err
    first, second = (tmp_path / name / "results.csv" for name in ("run0", "run1"))
    assert first.read_bytes() == second.read_bytes()
