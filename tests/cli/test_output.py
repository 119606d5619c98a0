"""Standard output and error that cannot be written cost no result, and the exit code tells the truth."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenizer_kinds import word_level
from tomfisher.cli.main import main
from tomfisher.cli.output import Terminal
from tomfisher.progress import note, progress_bar

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures_of_module")]
CONDITION = "信念 🙂"
WORDS = ["<unk>", "</s>", "a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    """A random model of ten words, a task whose conditions are no ASCII, and a text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("output")
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=1, max_position_embeddings=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    word_level(WORDS, unk_token="<unk>", eos_token="</s>").save_pretrained(folder / "model")
    draw = random.Random(1)
    lines = [
        {
            "prompt": " ".join(draw.choices(WORDS[2:], k=6)),
            "choices": ["c", "d"],
            "answer": i % 2,
            "condition": CONDITION,
            "id": str(i),
        }
        for i in range(24)
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    text = "\n\n".join(" ".join(draw.choices(WORDS[2:], k=40)) for _ in range(20))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return {
        "model": str(folder / "model"),
        "task": str(folder / "task.jsonl"),
        "control": str(folder / "text.txt"),
    }


def flags(**values: Any) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def study_flags(inputs: dict[str, str]) -> list[str]:
    small = {"n_task": 4, "n_control": 4, "control_length": 12, "kappas": 0.05, "random_seeds": 1, "limit": 6}
    return flags(
        **inputs, **small, perplexity_tokens=60, perplexity_window=30, device="cpu", analysis_prompts=2
    )


@pytest.fixture(scope="module")
def study(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    assert main(["run", *study_flags(inputs), "--output_path", str(folder)]) == 0
    return folder


def stream(kind: str, folder: Path) -> Any:
    """A standard stream that fails in one way."""
    if kind == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        return open(writer, "w", encoding="utf-8")
    if kind == "none":
        return None
    closed = kind == "closed"
    name = {"full": "/dev/full", "closed": os.devnull}.get(kind, folder / "printed")
    opened = open(name, "w", encoding="utf-8" if kind != "ascii" else "ascii")  # noqa: SIM115
    if closed:
        opened.close()
    return opened


def call(argv: list[str], out: Any, err: Any, monkeypatch) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = main(argv)
        assert sys.stdout is out and sys.stderr is err
    for opened in (out, err):
        if opened is not None:
            opened.close()  # as at the end of Python: what is still buffered must not fail
    return code


def commands(inputs: dict[str, str], study: Path, out: Path) -> dict[str, tuple[list[str], list[Path]]]:
    """Every command that writes, with what must be there afterwards."""
    model, task = flags(model=inputs["model"], device="cpu"), flags(task=inputs["task"])
    stores = flags(task_store=study / "fisher/task", control_store=study / "fisher/control")
    mask = ["--mask", str(study / "masks/task-control-0.05.safetensors")]
    to, few = ["--output_path", str(out)], flags(n_train=4, n_validation=4, learning_rates="1e-3")
    sweep = study_flags(inputs)
    for name in ("--n_task", "--n_control", "--control_length"):
        at = sweep.index(name)
        del sweep[at : at + 2]
    return {
        "run": (["run", *study_flags(inputs), *to], [out / "results.json", out / "report.html"]),
        "sweep": (["sweep", *sweep, *stores, *to], [out / "results.json", out / "report.html"]),
        "grid": (
            ["sweep", *sweep, *stores, "--fill", "zero,mean", *to],
            [out / "grid.json", out / "grid.csv"],
        ),
        "fisher": (["fisher", *model, *task, "--n_task", "4", *to], [out / "fisher.json"]),
        "mask": (["mask", *stores, "--kappa", "0.05", *to], [out]),
        "masks": (
            ["mask", *stores, "--kappas", "0.05,0.1", *to],
            [out.with_name(f"{out.name}-{k}") for k in (0.05, 0.1)],
        ),
        "perturb": (["perturb", *model, *mask, *to], [out / "perturbation.json", out / "model.safetensors"]),
        "evaluate": (["evaluate", *model, *task, *mask, *to], [out]),
        "analyze": (["analyze", *model, *task, *mask, "--limit", "2", *to], [out]),
        "compare": (
            ["analyze", "--compare_masks", *map(str, (study / "masks").glob("*.safetensors")), *to],
            [out],
        ),
        "ablate": (
            ["ablate", str(study), "--only", "full,qk", "--kappa", "0.05", "--random_seeds", "1", *to],
            [out / "ablations.json", out / "ablations.csv"],
        ),
        "finetune": (
            ["finetune", str(study), *mask, "--steps", "1", "--no_lora", "--random_masks", "1", *few, *to],
            [out / "finetune.json", out / "finetune.csv"],
        ),
        "report": (["report", str(study), *to], [out]),
        "bench": (["bench", "topk", *to], [out, out.with_suffix(".png")]),
        "testbed": (["testbed", "train", "--steps", "1", "--threads", "1", *to], [out / "training.json"]),
    }


NAMES = (
    *(
        "run",
        "sweep",
        "grid",
        "fisher",
        "mask",
        "masks",
        "perturb",
        "evaluate",
        "analyze",
        "compare",
        "ablate",
    ),
    *("finetune", "report", "bench", "testbed"),
)
KINDS = ("reader gone", "full", "ascii", "closed", "none")


@pytest.mark.parametrize(("name", "kind"), [(name, KINDS[i % 4]) for i, name in enumerate(NAMES)])
def test_every_command_saves_whatever_becomes_of_its_print(name, kind, inputs, study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    argv, files = commands(inputs, study, out)[name]
    if name == "bench":  # its contenders take long to start
        from tomfisher.benchmarks import bench_topk

        monkeypatch.setattr(bench_topk, "run", lambda args: {"found": CONDITION})
        monkeypatch.setattr(bench_topk, "report", lambda result: result["found"])
        monkeypatch.setattr(bench_topk, "plot", lambda result, path: path.write_bytes(b"png"))
    assert call(argv, stream(kind, tmp_path), stream(kind, tmp_path), monkeypatch) == 0
    assert all(file.is_file() for file in files), sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("out", KINDS)
@pytest.mark.parametrize("err", KINDS)
def test_an_evaluation_is_saved_with_every_pair_of_streams(out, err, inputs, tmp_path, monkeypatch):
    target = tmp_path / "out.json"
    argv = ["evaluate", *flags(model=inputs["model"], task=inputs["task"], limit=2, output_path=target)]
    assert call(argv, stream(out, tmp_path), stream(err, tmp_path), monkeypatch) == 0
    assert next(iter(json.loads(target.read_text())["baseline"]["conditions"])) == CONDITION


def test_characters_that_a_terminal_lacks_are_escaped(inputs, tmp_path, monkeypatch):
    argv = ["evaluate", *flags(model=inputs["model"], task=inputs["task"], limit=2)]
    assert call(argv, stream("ascii", tmp_path), stream("full", tmp_path), monkeypatch) == 0
    assert CONDITION.encode("ascii", "backslashreplace") in (tmp_path / "printed").read_bytes()


@pytest.mark.parametrize(("kind", "code"), [("reader gone", 0), ("full", 2), ("closed", 2), ("none", 2)])
@pytest.mark.parametrize("argv", [["ls", "fills"], [], ["--help"], ["evaluate"], ["plan"]])
def test_a_print_that_is_all_there_is_must_arrive(kind, code, argv, inputs, tmp_path, monkeypatch, capfd):
    if argv == ["evaluate"]:
        argv = ["evaluate", *flags(model=inputs["model"], task=inputs["task"], limit=2)]
    if argv == ["plan"]:
        argv = ["plan", *study_flags(inputs), "--output_path", str(tmp_path / "planned")]
    err = open(tmp_path / "err", "w", encoding="utf-8")  # noqa: SIM115
    try:
        found = call(argv, stream(kind, tmp_path), err, monkeypatch)
    except SystemExit as end:
        found = end.code
    assert found == code
    said = (tmp_path / "err").read_text() if err.closed else ""
    assert ("standard output could not be written" in said) == (code == 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("argv", [["ls", "nothing"], ["run"], ["evaluate", "--model", "no/such/model"]])
def test_a_refusal_stays_a_refusal(kind, argv, tmp_path, monkeypatch):
    assert call(argv, stream(kind, tmp_path), stream(kind, tmp_path), monkeypatch) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistyped_flag_stays_a_mistake(kind, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        call(["evaluate", "--modle", "m"], stream(kind, tmp_path), stream(kind, tmp_path), monkeypatch)
    assert caught.value.code == 2


def test_a_result_that_cannot_be_written_is_printed(inputs, tmp_path, monkeypatch, capsys):
    full = OSError(28, "No space left on device")

    def write_text(self: Path, *args: Any, **kwargs: Any) -> int:
        raise full

    monkeypatch.setattr(Path, "write_text", write_text)
    argv = ["evaluate", *flags(model=inputs["model"], task=inputs["task"], limit=2)]
    assert main([*argv, "--output_path", str(tmp_path / "out.json")]) == 2
    printed = capsys.readouterr()
    assert CONDITION in printed.out and "Written" not in printed.out and "the disk is full" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_progress_of_the_library_needs_no_standard_error(kind, tmp_path, monkeypatch):
    broken = stream(kind, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", broken)
        patch.setattr("tomfisher.progress.SECONDS", 0.0)
        note("said")
        assert list(progress_bar(range(3), desc=CONDITION)) == [0, 1, 2]


def run(shell: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m tomfisher.cli.main"
    words = ["bash", "-c", shell.replace("TOMFISHER", program)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("TOMFISHER ls fills | true; exit ${PIPESTATUS[0]}", 0),
        ("PYTHONUNBUFFERED=1 TOMFISHER ls fills | head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", 0),
        ("TOMFISHER ls nothing 2>&1 | true; exit ${PIPESTATUS[0]}", 2),
        ("TOMFISHER ls fills > /dev/full", 2),
        ("TOMFISHER ls fills >&-", 2),
        ("TOMFISHER ls nothing >&- 2>&-", 2),
        ("TOMFISHER --version > /dev/full 2> /dev/full", 2),
    ],
)
def test_exit_codes_of_a_real_process(shell, code):
    """Python's own flush at its end included, which would exit with 120."""
    done = run(shell)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_closed_descriptors_are_not_given_to_result_files():
    """A file that is opened as number 1 would receive whatever a C library prints."""
    code = (
        "import os, tempfile; from tomfisher.cli.output import Terminal\n"
        "with Terminal(), tempfile.TemporaryFile() as file: number = file.fileno()\n"
        "os._exit(number > 2)"
    )
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code])
    assert done.returncode == 1


def test_streams_come_back_after_an_error(monkeypatch, capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError, match="work"), Terminal():
        print("printed")
        raise RuntimeError("work")
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "printed\n"


def test_a_report_that_fails_hides_no_results(study, inputs, monkeypatch, capsys):
    def fails(run: str) -> None:
        raise OSError(28, "No space left on device", str(Path(run) / "report.html"))

    monkeypatch.setattr("tomfisher.report.write", fails)
    assert main(["run", *study_flags(inputs), "--output_path", str(study)]) == 2
    printed = capsys.readouterr()
    assert f"Results: {study}/results.json" in printed.out and "Report:" not in printed.out
    assert "the disk is full (writing" in printed.err


@pytest.mark.parametrize("name", ["record.png", "record.json"])
def test_a_benchmark_whose_plot_has_no_place_does_not_begin(name, tmp_path, monkeypatch, capsys):
    from tomfisher.benchmarks import bench_topk

    monkeypatch.setattr(bench_topk, "run", lambda args: pytest.fail("it began to work"))
    if name == "record.json":
        (tmp_path / "record.png").mkdir()
    assert main(["bench", "topk", "--output_path", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert ("is the plot's name" if name == "record.png" else "record.png is a folder, not a file") in said
