"""What a command writes replaces nothing that it has not written, and nothing that it reads."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

import tomfisher.fisher
from tomfisher import FisherDiagonal
from tomfisher.cli.main import main

TEXT = "Anna puts the ball in the box .\n\nBob puts the ball in the bag .\n"
QUESTION = '{"prompt": "Anna puts the ball in the", "choices": ["box", "bag"], "answer": 0, "id": "x"}\n'
MODEL = ["--model", "testbed-llama", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a mask, a perturbed model, texts and questions."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "t.txt").write_text(TEXT)
    (folder / "q.jsonl").write_text(QUESTION)
    texts, store = ["--texts", str(folder / "t.txt")], str(folder / "store")
    assert main(["fisher", *MODEL, *texts, "--output_path", store]) == 0
    assert main(["mask", "--task_store", store, "--kappa", "1e-3", "--output_path", f"{folder}/m"]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("command", ["fisher", "perturb"])
@pytest.mark.parametrize("there", ["nothing", "notes.txt", "fisher.json", "perturbation.json", "both"])
def test_a_folder_of_others_is_refused_before_the_work(
    command: str, there: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    marker = {"fisher": "fisher.json", "perturb": "perturbation.json"}[command]
    for name in {"nothing": [], "both": [marker, "thesis.tex"]}.get(there, [there, "thesis.tex"]):
        (out / name).write_text("{}")
    before = contents(tmp_path)
    given = ["--texts", f"{made}/t.txt"] if command == "fisher" else ["--mask", f"{made}/m"]
    with mock.patch("tomfisher.models.load_model", side_effect=AssertionError("work")):
        assert main([command, *MODEL, *given, "--output_path", str(out), "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "so it is left alone" in said and ".. " not in said and "permissions" not in said
    assert contents(tmp_path) == before and out.is_dir()


def test_a_perturbed_model_is_replaced_by_another(made: Path, tmp_path: Path) -> None:
    command = ["perturb", *MODEL, "--mask", f"{made}/m", "--output_path", f"{tmp_path}/p"]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "p/mine.txt").write_text("x")
    assert main([*command, "--overwrite"]) == 2
    assert (tmp_path / "p/mine.txt").read_text() == "x"


def test_a_fisher_whose_place_is_taken_meanwhile_is_kept_beside_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, real = tmp_path / "out", tomfisher.fisher.fisher_diagonal

    def computed(*args: object, **kwargs: object) -> FisherDiagonal:
        found = real(*args, **kwargs)  # type: ignore[arg-type]
        out.mkdir()
        (out / "thesis.tex").write_text("x")
        return found

    with mock.patch("tomfisher.fisher.fisher_diagonal", computed):
        assert main(["fisher", *MODEL, "--texts", f"{made}/t.txt", "--output_path", str(out)]) == 2
    (kept,) = (path for path in tmp_path.iterdir() if path != out)
    assert f"The finished Fisher is kept in {kept}." in capsys.readouterr().err
    found, expected = FisherDiagonal.load(kept), FisherDiagonal.load(made / "store")
    assert set(found) == set(expected) and all(torch.equal(found[n], expected[n]) for n in found)


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", *MODEL, "--task", "q.jsonl", "--output_path", "q.jsonl"],
        ["evaluate", *MODEL, "--task", "bigtom:q.jsonl", "--output_path", "q.jsonl"],
        ["evaluate", *MODEL, "--task", "q.jsonl", "--mask", "m", "--output_path", "./m"],
        ["mask", "--task_store", "store", "--kappa", "1e-3", "--output_path", "store/fisher.json"],
        ["mask", "--task_store", "store", "--kappas", "1e-3,1e-2", "--output_path", "store/new"],
        ["mask", "--random_like", "m", "--output_path", "link"],
        ["fisher", *MODEL, "--texts", "t.txt", "--output_path", "t.txt/store"],
        ["fisher", "--model", "store", "--texts", "t.txt", "--output_path", "store"],
        ["analyze", "--compare_masks", "m", "n", "--output_path", "n"],
        ["sweep", *MODEL, "--task_store", "run/store", "--control_store", "store", "--output_path", "run"],
    ],
    ids=lambda argv: " ".join(argv[:1] + argv[-1:]),
)
def test_an_output_that_the_command_reads_is_refused(
    argv: list[str],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    shutil.copytree(made / "store", folder / "run/store")
    shutil.copy(made / "m", folder / "n")
    (folder / "link").symlink_to("m")
    monkeypatch.chdir(folder)
    before = contents(folder)
    assert main([*argv, "--overwrite"]) == 2
    assert "Give another --output_path" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("method", "flag", "value"),
    [
        ("generate", "normalize", "byte"),
        ("choice", "temperature", "0.6"),
        ("choice", "repetitions", "5"),
        ("choice", "top_p", "0.9"),
        ("choice", "max_new_tokens", "8"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "run", "sweep", "finetune"])
def test_flags_of_the_other_method_are_refused(
    command: str,
    method: str,
    flag: str,
    value: str,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stores = (
        ["--task_store", f"{made}/store", "--control_store", f"{made}/store"] if command == "sweep" else []
    )
    mask = ["--mask", f"{made}/m"] if command == "finetune" else []
    given = [*MODEL, *stores, *mask, "--method", method, f"--{flag}", value, "--output_path", f"{tmp_path}/o"]
    assert main([command, *given]) == 2
    assert f"--{flag} belongs to --method" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_settings_of_the_other_method_in_a_file_are_let_be(tmp_path: Path) -> None:
    from tomfisher.studies import Config

    (tmp_path / "c.yaml").write_text(Config(model="m", repetitions=5, temperature=0.5).to_yaml())
    assert Config.resolve({}, tmp_path / "c.yaml").repetitions == 5
