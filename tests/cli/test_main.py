from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from tomfisher import FisherDiagonal, testbed
from tomfisher.cli import main as cli
from tomfisher.cli.main import build_parser, explain, main

COMMANDS = [
    "run",
    "fisher",
    "mask",
    "perturb",
    "evaluate",
    "analyze",
    "sweep",
    "merge",
    "export",
    "plan",
    "ls",
    "testbed",
    "bench",
]


def subcommands():
    (action,) = [a for a in build_parser()._actions if hasattr(a, "choices") and isinstance(a.choices, dict)]
    return action.choices


@pytest.mark.parametrize(
    "name", ["evaluate", "analyze", "mask", "fisher", "perturb", "run", "ablate", "report"]
)
@pytest.mark.parametrize("place", ["/proc/nope/x", "afile/deep/x"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(name, place, tmp_path, monkeypatch, capsys):
    (tmp_path / "afile").write_text("kept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"tomfisher.cli.{name}.run", lambda args: pytest.fail("it began to work"))
    needed = {"perturb": ["--mask", "m"], "ablate": ["RUN"], "report": ["RUN"], "mask": []}
    model = [] if name in ("mask", "ablate", "report") else ["--model", "m"]
    assert main([name, *needed.get(name, []), *model, "--output_path", place]) == 2
    said = capsys.readouterr().err
    reason = "/proc/nope/x cannot be written: " if "proc" in place else "afile is a file, not a folder"
    assert reason in said and "Errno" not in said and "--output_path" in said
    assert [file.name for file in tmp_path.iterdir()] == ["afile"]


def test_alone_it_prints_help_with_commands_to_paste(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "tomfisher run --preset demo-testbed" in out
    assert all(f"    {name} " in out for name in COMMANDS)


def test_every_example_in_every_help_parses():
    """What the help tells people to paste must be accepted by the parser."""
    parser = build_parser()
    texts = [cli.EXAMPLES, *(command.epilog or "" for command in subcommands().values())]
    lines = re.sub(r"\\\n +", "", "\n".join(texts)).splitlines()
    examples = [
        shlex.split(line.strip().split("   ")[0]) for line in lines if line.strip().startswith("tomfisher ")
    ]
    assert {words[1] for words in examples} >= set(COMMANDS)
    for words in examples:
        if words[1] in ("COMMAND", "--help"):
            continue
        args = parser.parse_args(words[1:])
        assert callable(args.execute), words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_ends_with_examples(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"tomfisher {name}" in capsys.readouterr().out.partition("examples:")[2]


def test_help_needs_no_torch():
    code = "import sys; from tomfisher.cli.main import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "--model", "m", "--kappas", "2"], "kappa must lie strictly between 0 and 1"),
        (["run"], "model is not given"),
        (["run", "--preset", "demo"], "Presets: demo-testbed, demo-smollm2"),
        (["run", "--config", "no/such.yaml"], "no/such.yaml: there is no such file"),
        (["run", "--model", "m", "--n_task", "few"], "n_task must be a whole number"),
        (["run", "--model", "m", "--labels", "true"], "labels must be one of empirical, sampled"),
        (["run", "--model", "m", "--criterion", "wandas"], "Did you mean 'wanda'"),
        (
            ["mask", "--task_store", "s", "--kappa", "0.1", "--control_kappa", "0.1", "--output_path", "x"],
            "not given",
        ),
        (["evaluate", "--model", "smollm2-135"], "Did you mean 'smollm2-135m'"),
        (["ls", "nothing"], "is not a run folder"),
        (["mask", "--output_path", "x"], "needs --task_store and --kappa"),
        (
            ["mask", "--task_store", "no/store", "--kappa", "1e-3", "--output_path", "x"],
            "No Fisher store at no/store",
        ),
        (
            ["perturb", "--model", "m", "--mask", "no.safetensors", "--output_path", "x"],
            "No mask file at no.safetensors",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.out == ""


def test_debug_shows_the_traceback(capsys):
    assert main(["--debug", "run"]) == 2
    assert main(["run", "--debug"]) == 2
    assert capsys.readouterr().err.count("Traceback") == 2


@pytest.mark.parametrize(
    ("name", "flag", "says", "not_this"),
    [
        ("mask", "--task_store", "store to select from", "instead of computing"),
        ("fisher", "--task", "exactly one of --task, --control and --texts", "[false-belief]"),
        ("fisher", "--control", "general text", "[python-reference]"),
        ("evaluate", "--control", "measure the perplexity on this text too", "[python-reference]"),
    ],
)
def test_help_of_a_shared_flag_says_what_it_does_in_this_command(name, flag, says, not_this):
    (action,) = [a for a in subcommands()[name]._actions if flag in a.option_strings]
    assert says in action.help and not_this not in action.help


@pytest.mark.parametrize("with_control", [False, True])
def test_an_empty_mask_is_an_error_that_says_why(with_control, tmp_path, capsys):
    store, target = tmp_path / "store", tmp_path / "m.safetensors"
    FisherDiagonal({"w": torch.rand(4, 4)}, 1, 1, {}, {}).save(store)
    stores = ["--task_store", str(store), *(["--control_store", str(store)] if with_control else [])]
    kappa = "0.5" if with_control else "1e-6"
    assert main(["mask", *stores, "--kappa", kappa, "--output_path", str(target)]) == 2
    said = capsys.readouterr().err
    assert "would be empty" in said and ("by the control" in said) == with_control
    assert not target.exists()


@pytest.mark.parametrize("kappa", ["0", "1", "-1e-4", "nan", "one"])
def test_kappa_flag_outside_its_range_is_refused(kappa, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["mask", f"--kappa={kappa}", "--output_path", "x"])
    assert caught.value.code == 2
    assert "kappa must" in capsys.readouterr().err


def stand_in(monkeypatch, action):
    """A parser whose command `ls` does something else."""
    real = build_parser

    def build():
        parser = real()
        parse = parser.parse_known_args

        def parse_known_args(argv=None):
            args, unknown = parse(argv)
            args.execute = lambda _: action()
            return args, unknown

        parser.parse_known_args = parse_known_args
        return parser

    monkeypatch.setattr(cli, "build_parser", build)


def raising(error):
    def action():
        raise error

    return action


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(monkeypatch, capsys):
    stand_in(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["ls"]) == 130
    assert "run the same command to resume" in capsys.readouterr().err


def test_full_disk_is_named_with_the_way_out(monkeypatch, capsys):
    stand_in(monkeypatch, raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/points/a.json")))
    assert main(["ls"]) == 2
    err = capsys.readouterr().err
    assert "disk is full (writing runs/x/points/a.json)" in err and "run the same command again" in err


def test_defects_of_ours_keep_their_traceback(monkeypatch):
    stand_in(monkeypatch, raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["ls"])
    assert explain(ZeroDivisionError()) is None


def test_warnings_are_one_paragraph(monkeypatch, capsys):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    stand_in(monkeypatch, lambda: warnings.warn("2 texts were cut", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["ls"])
    assert capsys.readouterr().err == "tomfisher: warning: 2 texts were cut\n"


@pytest.mark.parametrize("name", ["run", "sweep", "plan", "evaluate", "analyze", "finetune"])
def test_help_says_that_a_testbed_model_has_its_own_task(name):
    (action,) = [a for a in subcommands()[name]._actions if "--task" in a.option_strings]
    assert "[false-belief; a testbed model's own]" in action.help


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_testbed_model_is_asked_in_its_own_language_and_that_is_said(monkeypatch, capsys, command):
    seen = []

    def stop(config, *args, **kwargs):
        seen.append((config.task, config.control))
        raise ValueError("enough")

    monkeypatch.setattr("tomfisher.studies.plan.plan_study", stop)
    monkeypatch.setattr("tomfisher.studies.Experiment", stop)
    assert main([command, "--model", "testbed2-mpt"]) == 2
    assert (
        "knows only its own small language: using task testbed2, control testbed." in capsys.readouterr().err
    )
    assert main([command, "--model", "testbed2-mpt", "--task", "irony", "--control", "c.txt"]) == 2
    assert "language" not in capsys.readouterr().err
    assert seen == [("testbed2", "testbed"), ("irony", "c.txt")]


LOADING = {
    "run": [],
    "plan": [],
    "evaluate": [],
    "fisher": ["--task", "testbed", "--output_path", "F"],
    "analyze": [],
}


@pytest.mark.parametrize("command", list(LOADING))
@pytest.mark.parametrize("spoilt", ["config.json", "tokenizer.json", "model.safetensors"])
def test_every_command_that_loads_explains_a_model_that_cannot_be_loaded(
    tmp_path, monkeypatch, capsys, command, spoilt
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(testbed.shipped(), "model")
    (tmp_path / "model" / spoilt).write_text("{")
    assert main([command, "--model", "./model", *LOADING[command]]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tomfisher: Cannot load the")
    assert "./model" in said
    assert len(said) < 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--modle", "x"], "usage: tomfisher run"),
        (["run", "--modle=x"], "unrecognized arguments: --modle=x. Did you mean --model?"),
        (["ls", "models", "--zzz"], "unrecognized arguments: --zzz. Try tomfisher ls --help"),
    ],
)
def test_a_misspelt_flag_is_explained_by_its_command(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and said in capsys.readouterr().err
