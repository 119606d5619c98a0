from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tomfisher.results.row import rows_of
from tomfisher.studies.claim import claimed
from tomfisher.studies.config import Config

SCORE = {"n": 2, "accuracy": 0.5, "ci95": [0.1, 0.9], "p_vs_baseline": None}


def config_in(path, **changes):
    return Config(**{"model": "m", "output_path": str(path), **changes})


def a_point(**changes):
    return rows_of(
        {
            "kappa": 1e-4,
            "mask": "random",
            "seed": 3,
            "nnz": 7,
            "conditions": {"all": SCORE},
            "perplexity": 2.0,
        }
        | changes
    )


def test_same_settings_reopen_and_another_folder_name_does_not_matter(tmp_path):
    with claimed(config_in(tmp_path / "run")) as folder:
        folder.save_point(a_point(), {"records": []})
    (tmp_path / "run").rename(tmp_path / "moved")
    with claimed(config_in(tmp_path / "moved")) as folder:
        assert folder.load_point("random-0.0001-seed3") == (a_point(), {"records": []})


def test_attempt_without_any_result_may_be_corrected(tmp_path):
    with claimed(config_in(tmp_path, model="mistyped")) as folder:
        folder.pin(command=["tomfisher"])
    with claimed(config_in(tmp_path, model="right")) as folder:
        assert folder.pinned() == {}
    assert "model: right" in (tmp_path / "config.yaml").read_text()


def test_changed_settings_are_refused_with_their_names_and_values(tmp_path):
    with claimed(config_in(tmp_path)) as folder:
        folder.save_point(a_point(), {})
    with pytest.raises(ValueError) as caught, claimed(config_in(tmp_path, seed=5, fill="zero")):
        pass
    lines = str(caught.value).splitlines()
    assert "  fill: was 'mean', now 'zero'" in lines and "  seed: was 0, now 5" in lines
    assert len(lines) == 4 and "--overwrite" in lines[-1]


def test_overwrite_deletes_only_what_tomfisher_writes(tmp_path):
    with claimed(config_in(tmp_path)) as folder:
        folder.save_point(a_point(), {})
    (tmp_path / "notes.txt").write_text("mine")
    with claimed(config_in(tmp_path, seed=5), overwrite=True) as folder:
        assert folder.load_point(a_point()[0].key) is None
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_deletes_what_was_made_of_the_old_study_and_nothing_else(tmp_path):
    with claimed(config_in(tmp_path)) as folder:
        folder.save_point(a_point(), {})
    ours = [
        "ablations/ablations.json",
        "ablations/points/qk.json",
        "ablations/inputs.json",
        "finetune/finetune.json",
    ]
    ours += ["finetune/.lock", "finetune/delta.safetensors", "finetune.json"]
    ours += ["figures/accuracy.svg", "figures/ablations.png"]
    theirs = ["ablations/notes.txt", "ablations/points/qk.txt", "figures/mine.png"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with claimed(config_in(tmp_path)):
        assert all((tmp_path / name).is_file() for name in ours)
    with claimed(config_in(tmp_path, seed=5), overwrite=True):
        pass
    assert not [name for name in ours if (tmp_path / name).exists()]
    assert all((tmp_path / name).is_file() for name in theirs)
    assert not (tmp_path / "finetune").exists()


def test_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with (
            pytest.raises(ValueError, match=r"holds thesis\.tex"),
            claimed(config_in(tmp_path), overwrite),
        ):
            pass
    assert (tmp_path / "thesis.tex").exists()


def test_second_process_in_the_folder_is_refused(tmp_path):
    code = (
        "import sys; from tomfisher.studies.config import Config\n"
        "from tomfisher.studies.claim import claimed\n"
        f"with claimed(Config(model='m', output_path={str(tmp_path)!r})): print('opened')"
    )
    with claimed(config_in(tmp_path)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "Another tomfisher process" in done.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_damaged_point_is_said_and_measured_again(tmp_path):
    with claimed(config_in(tmp_path)) as folder:
        folder.save_point(a_point(), {})
        file = tmp_path / "points" / f"{a_point()[0].key}.json"
        whole = file.read_text()
        for damaged in (whole[: len(whole) // 2], "{}", json.dumps({"point": {"kappa": 1}, "scores": {}})):
            file.write_text(damaged)
            with pytest.warns(UserWarning, match="is damaged"):
                assert folder.load_point(a_point()[0].key) is None


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    with claimed(config_in(tmp_path)):
        pass
    leftover = tmp_path / "fisher" / ".task.abcd1234.tmp"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_text("half")
    (tmp_path / ".results.json.abcd1234.tmp").write_text("half")
    with claimed(config_in(tmp_path)):
        assert not leftover.exists()
        assert not list(tmp_path.glob(".results*"))


def test_pinned_facts_may_not_change(tmp_path):
    with claimed(config_in(tmp_path)) as folder:
        folder.save_point(a_point(), {})
        folder.pin(data={"task": "aa", "control": "bb"}, device="cpu")
        folder.pin(data={"task": "aa", "control": "bb"})
        with pytest.raises(ValueError, match=r"data\.control: was 'bb', now 'cc'") as caught:
            folder.pin(data={"task": "aa", "control": "cc"})
        assert "data.task" not in str(caught.value)
        assert folder.pinned()["data"]["control"] == "bb"


def test_output_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"), claimed(config_in(tmp_path / "file")):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_somebody_elses_config_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("config.yaml", "results.csv", "masks/mine.txt"):
        (tmp_path / name).write_text("years of work")
    config = Config(model="testbed-llama", output_path=str(tmp_path))
    with pytest.raises(ValueError, match="was not written by tomfisher"), claimed(config, overwrite):
        pass
    for name in ("config.yaml", "results.csv", "masks/mine.txt"):
        assert (tmp_path / name).read_text() == "years of work"
