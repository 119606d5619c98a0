"""`tomfisher plan` on paper: a config is enough, the machine is described or at hand."""

from __future__ import annotations

import re

import pytest
from transformers import LlamaConfig

from tomfisher.cli.main import main
from tomfisher.fisher import ways
from tomfisher.studies import Config
from tomfisher.studies.byte_sizes import bytes_of
from tomfisher.studies.machine import Described, machine_for


@pytest.fixture
def config_alone(tmp_path):
    sizes = {"vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2).save_pretrained(tmp_path)
    return tmp_path


def test_a_machine_is_described_and_what_is_lacking_said(capsys, monkeypatch):
    monkeypatch.setattr(ways, "BUILT", frozenset())
    settings = ["--devices", "8", "--nodes", "4", "--memory", "80GB", "--fisher_dtype", "bf16"]
    assert main(["plan", "--model", "llama3-70b", *settings, "--samples", "64", "--tokens", "32"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert "each 64 of 32 tokens" in out and "4 nodes of 8 GPUs with 80.0 GB each" in out
    assert "way         resident, weights sharded over 8, samples split over 32" in out
    assert "not supported yet: weights sharded over GPUs (FSDP2)" in out
    assert "today       nothing that the code can do fits" in out
    total = float(re.search(r"in all, above the interpreter +([\d.]+)", out)[1])
    parts = re.findall(r"^ {14}(?!in all)\S.* +([\d.]+) +[\d.]+$", out, re.MULTILINE)
    assert sum(map(float, parts)) == pytest.approx(total, abs=0.05)


@pytest.mark.parametrize("name", ["", "config.json"])
def test_here_a_config_without_weights_is_planned_and_not_probed(config_alone, capsys, name):
    assert main(["plan", "--model", str(config_alone / name), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "way         resident\n" in out and "GB of disk free" in out
    assert out.endswith("Not probed: the weights are not here.\n")


def test_what_does_not_fit_here_is_not_loaded(capsys, monkeypatch):
    monkeypatch.setattr("tomfisher.studies.machine.free_device_memory", lambda device: 20 * 10**9)
    monkeypatch.setattr("tomfisher.studies.plan.plan_study", lambda *args: pytest.fail("loaded"))
    assert main(["plan", "--model", "llama3-8b", "--device", "cpu", "--fisher_dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "not taken   resident: a process would hold" in out
    assert (
        "way         streamed" in out
        and "do not fit into memory here. They are streamed (--stream auto)." in out
    )


def test_speeds_that_are_given_are_taken():
    said = Described(devices=2, disk_speed=bytes_of("7GB/s"), link_speed=bytes_of("25 GB/s"), host_memory=5)
    machine = machine_for(Config(model="x"), said)
    assert (machine.disk_speed, machine.link, machine.host_memory) == (7e9, 25e9, 5)
    assert machine.gpu is not None and machine.memory == machine.gpu.memory == 80e9
    assert machine_for(Config(model="x", device="cpu"), Described(memory=7)).gpu is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80e9), ("16GiB", 16 * 2**30), ("2.5gb/s", 2.5e9), ("1000000", 1e6), ("1 TB", 1e12)],
)
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


def test_what_is_no_size_and_no_machine_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--model", "llama3-8b", "--memory", "much"])
    assert "must be a size such as 80GB" in capsys.readouterr().err
    with pytest.raises(ValueError, match="devices must be positive, got 0"):
        machine_for(Config(model="x"), Described(devices=0))
