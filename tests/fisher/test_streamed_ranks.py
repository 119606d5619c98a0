"""Streaming in several processes: the bits of as many with a resident model, one store, resumed where it stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from processes import run_ranks

from tiny_models import random_model

pytestmark = pytest.mark.slow

STREAMED = """
from transformers import AutoModelForCausalLM
from tomfisher.models.opened import open_model

def stream(samples, **options):
    return tomfisher.fisher_diagonal(
        open_model("model"), samples, tokens_per_batch=60, progress=False, **options
    )
def resident(samples, **options):
    model = AutoModelForCausalLM.from_pretrained("model")
    return tomfisher.fisher_diagonal(model, samples, tokens_per_batch=60, progress=False, **options)
def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)

samples = samples_of(5, 9, 30, 12, 7, 21, 3)
"""

TOGETHER = """
expected, found = resident(samples, params="all"), stream(samples, params="all")
told(memory=equal(found, expected), methods=found.methods == expected.methods)
told(same=[key for key in expected.metadata if found.metadata[key] != expected.metadata[key]])
stored = stream(samples, out="store", labels="sampled", seed=3)
told(stored=equal(stored, resident(samples, labels="sampled", seed=3)))
told(ranks=stored.metadata["ranks"], passes=stored.metadata["streamed"]["passes"])
few = samples_of(11)
told(few=equal(stream(few, out="few", boundary="ram"), resident(few)))

told(samples=refusal(stream, samples if rank != 1 else samples_of(4, 4)))
told(seed=refusal(stream, samples, labels="sampled", seed=rank))
if rank == 0:
    os.makedirs("seen")
    seen = "seen/store"
else:
    seen = "unseen/store"
told(folder=refusal(stream, samples, out=seen))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a small model of four layers."""
    random_model("smollm3", noise=0.05).save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_stream_give_the_bits_of_ranks_with_the_whole_model(size: int, folder: Path) -> None:
    ended = [process.facts for process in run_ranks(folder, STREAMED + TOGETHER, size)]
    for rank, facts in enumerate(ended):
        assert facts["memory"] and facts["stored"] and facts["few"] and facts["methods"]
        assert set(facts["same"]) <= {"model", "versions"}
        assert facts["ranks"]["world_size"] == size and sum(facts["ranks"]["samples"]) == 7
        assert facts["passes"] == 1
        assert "Rank 1 differs from rank 0 in what the Fisher diagonal is of" in facts["samples"]
        assert "definition.seed: 0 on rank 0, 1 on rank 1" in facts["seed"]
        # of several ranks that refuse, rank 0 names the one that it hears of first
        said = "does not see what rank 0 writes to" if rank else r"Rank [12] has ended"
        assert re.search(said, facts["folder"])
    left = {path.name for path in folder.iterdir() if not path.name.endswith((".out", ".err", ".py"))}
    assert left == {"model", "store", "few", "seen", "unseen"}


KILLED = """
from tomfisher.fisher.growing import GrowingStore

commit = GrowingStore.commit
def fatal(self, step, *arguments):
    if rank == int(os.environ["WHO"]) and step.endswith(os.environ["AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    commit(self, step, *arguments)
GrowingStore.commit = fatal
try:
    stream(samples, out="store", boundary=os.environ["BOUNDARY"], params="all")
except ranks.RankError as error:
    sys.exit(f"said: {error}")
"""

RESUMED = """
from tomfisher.runtime.layerwise import Layers

if rank == 0:
    with ranks.alone():
        told(alone=refusal(stream, samples, out="store", boundary=os.environ["BOUNDARY"], params="all"))
    assert not os.path.exists("store")
gone, on = [], Layers.on
def counted(self, number, following=None):
    gone.append(number)
    return on(self, number, following)
Layers.on = counted
found = stream(samples, out="store", boundary=os.environ["BOUNDARY"], params="all")
told(gone=list(gone), resumed=found.metadata["streamed"]["resumed"])
whole = stream(samples, out="whole", params="all")
told(equal=equal(found, whole), methods=found.methods == whole.methods, ranks=found.metadata["ranks"])
"""


@pytest.mark.parametrize(
    ("boundary", "who", "at", "layers"),
    [
        ("auto", 0, "down 1", [[1, 0], [1, 0]]),  # rank 1 has kept what the store does not have yet
        ("ram", 0, "down 1", [[0, 1, 2, 3, 1, 0]] * 2),
        ("auto", 1, "up 2", [None, [2, 3, 3, 2, 1, 0]]),
        ("ram", 1, "down 2", [[0, 1, 2, 3, 2, 1, 0]] * 2),
    ],
)
def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on(
    boundary: str, who: int, at: str, layers: list[list[int] | None], folder: Path
) -> None:
    environment = {"BOUNDARY": boundary, "WHO": str(who), "AT": at, "TOMFISHER_RANK_TIMEOUT": "4"}
    ended = run_ranks(folder, STREAMED + KILLED, 2, environment)
    assert ended[who].code == -9
    assert ended[1 - who].code == 1
    said = "The process group's store does not answer" if who == 0 else "Rank 1 has ended"
    assert f"said: {said}" in ended[1 - who].err
    assert not (folder / "store").exists()
    resumed = [process.facts for process in run_ranks(folder, STREAMED + RESUMED, 2, environment)]
    assert "differs in ranks (2 there, 1 here)" in resumed[0]["alone"]
    for facts, gone in zip(resumed, layers, strict=True):
        assert gone is None or facts["gone"] == gone
        assert facts["equal"] and facts["methods"] and facts["resumed"]
        assert sum(facts["ranks"]["samples"]) == 7
    for file in (folder / "whole").glob("*.safetensors"):
        assert file.read_bytes() == (folder / "store" / file.name).read_bytes()
    left = {path.name for path in folder.iterdir() if not path.name.endswith((".out", ".err", ".py"))}
    assert left == {"model", "store", "whole"}
