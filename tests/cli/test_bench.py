"""`tomfisher bench`: names, plans without a GPU, and the status of the kernels."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from tomfisher.benchmarks.verification import kernels, kernels_folder
from tomfisher.cli.bench import BENCHMARKS, GPUS
from tomfisher.cli.main import build_parser, main

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what runs where there is no GPU")


def test_alone_it_prints_its_help(capsys):
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in BENCHMARKS) and "tomfisher bench --status" in out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help_and_a_module(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", name, "--help"])
    assert caught.value.code == 0 and "--output_path" in capsys.readouterr().out
    module = importlib.import_module(f"tomfisher.benchmarks.bench_{name}")
    assert callable(module.run) and callable(module.report)


def test_the_named_gpus_have_data_sheets():
    from tomfisher.runtime.gpus import GPUS as sheets

    assert set(GPUS) == set(sheets)


@needs_no_gpu
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("squared_gradient --gpu h200", ["H200", "llama3-8b gate/up 14336x4096, 100~100", "BackPACK"]),
        ("squared_gradient --gpu a100 --model llama3-70b", ["A100", "llama3-70b down 8192x28672, 8x512"]),
        ("masked_fill", ["H100", "6.98 G weights in 224 tensors", "κ = 1e-05: 69,793 entries"]),
        ("topk_gpu", ["H100", "7e+09 float32 values", "28.0 GB, read once in 8.36 ms"]),
        ("fisher --config llama3-8b", ["H100", "bf16 random weights, 100 x 128 tokens", "563 TFLOP"]),
        ("gpu_tests", ["pytest -m gpu"]),
    ],
)
def test_without_a_gpu_it_says_what_would_run(words, said, capsys, tmp_path):
    assert main(["bench", *words.split(), "--output_path", str(tmp_path / "x.json")]) == 0
    out = capsys.readouterr().out
    assert "No CUDA device here" in out and all(text in out for text in said)
    assert not list(tmp_path.iterdir())  # nothing was measured, so nothing is recorded


def test_status_lists_every_kernel(capsys):
    assert main(["bench", "--status"]) == 0
    out = capsys.readouterr().out
    for file, names in kernels(kernels_folder()).items():
        assert all(f"{file}: {name}" in out for name in names)


def test_status_of_a_folder_without_gpu_records_is_plain(tmp_path, capsys):
    record = {"machine": {"device": "cpu", "cpu": "some CPU"}, "date": "2026-01-02", "results": {}}
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert main(["bench", "--status", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "the kernels are not verified on a GPU" in out and "verified:" not in out
    assert "some CPU, 2026-01-02; sources not recorded" in out


def test_status_of_a_missing_folder_is_refused(tmp_path, capsys):
    assert main(["bench", "--status", "--results", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [("2e9", 2_000_000_000), ("1000", 1000)])
def test_counts_may_be_written_short(text, number):
    assert build_parser().parse_args(["bench", "topk_gpu", "--n", text]).n == number


@pytest.mark.parametrize("text", ["1.5", "-3", "many"])
def test_a_count_is_a_whole_number(text, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["bench", "topk_gpu", "--n", text])
    assert "whole number" in capsys.readouterr().err


def test_gpu_tests_need_a_checkout(tmp_path, capsys):
    assert main(["bench", "gpu_tests", "--tests", str(tmp_path / "tests")]) == 2
    assert "source checkout" in capsys.readouterr().err
