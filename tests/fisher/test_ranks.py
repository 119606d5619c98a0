"""A Fisher diagonal that several processes take together: the same bits each time, and that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import GROUP, PRELUDE, run_ranks, torchrun

pytestmark = pytest.mark.slow

TOGETHER = """
model = random_model("llama-gqa", 0.05)
def take(samples, **options):
    return tomfisher.fisher_diagonal(model, samples, progress=False, **options)
def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)

samples = samples_of(5, 9, 30, 12, 7, 21, 3)
for name, options in (
    ("empirical", {"params": "all"}),
    ("sampled", {"labels": "sampled", "seed": 3, "reduction": "sum"}),
    ("small", {"tokens_per_batch": 30}),
):
    together, again = take(samples, **options), take(samples, **options)
    with ranks.alone():
        one = take(samples, **options)
    told(**{name: {
        "again": equal(together, again), "one": apart(together, one), "methods": together.methods == one.methods,
        "counts": [together.num_samples, together.num_tokens] == [one.num_samples, one.num_tokens],
        "sha": together.metadata["data_sha256"] == one.metadata["data_sha256"],
    }})
told(ranks=together.metadata["ranks"])

few = take(samples_of(11))
with ranks.alone():
    one = take(samples_of(11))
told(few=equal(few, one), few_ranks=few.metadata["ranks"])

stored = take(samples, out="store")
told(stored=equal(tomfisher.FisherDiagonal.load("store"), stored))

other = samples if rank != 1 else samples_of(5, 9, 30, 12, 7, 21, 3, seed=1)
told(samples=refusal(take, other))
told(seed=refusal(take, samples, labels="sampled", seed=rank))
told(params=refusal(take, samples, params="*.0.*" if rank == 1 else "*.1.*"))
changed = model
if rank == 1:
    changed = random_model("llama-gqa", 0.06)
told(model=refusal(tomfisher.fisher_diagonal, changed, samples, progress=False))
told(none=refusal(take, []))
told(afterwards=equal(take(samples), take(samples)))
"""


def test_several_ranks_take_the_fisher_of_one(tmp_path: Path) -> None:
    size = 3  # two add up to the same in either order
    ended = [process.facts for process in run_ranks(tmp_path, TOGETHER, size)]
    for facts in ended:
        for name in ("empirical", "sampled", "small"):
            assert facts[name].pop("one") <= 1e-6, name
            assert all(facts[name].values()), (name, facts[name])
        assert facts["ranks"]["world_size"] == size
        assert sum(facts["ranks"]["samples"]) == 7
        assert max(facts["ranks"]["tokens"]) - min(facts["ranks"]["tokens"]) <= 12
        assert facts["few"]
        assert facts["few_ranks"]["samples"] == [1] + [0] * (size - 1)
        assert facts["stored"]
        assert "Rank 1 differs from rank 0 in what the Fisher diagonal is of" in facts["samples"]
        assert "data_sha256" in facts["samples"]
        assert "definition.seed: 0 on rank 0, 1 on rank 1" in facts["seed"]
        assert "params" in facts["params"]
        assert "model.weights_sha256" in facts["model"]
        assert "samples is empty" in facts["none"]
        assert facts["afterwards"]
    facts = json.loads((tmp_path / "store" / "fisher.json").read_text())
    assert facts["ranks"]["world_size"] == size
    assert not list(tmp_path.glob(".*"))  # no half-written store


EXPERTS = """
model = random_model("qwen2-moe", 0.05)
samples = samples_of(*range(3, 15))
F = tomfisher.fisher_diagonal(model, samples, params="all", progress=False, tokens_per_batch=16)
with ranks.alone():
    G = tomfisher.fisher_diagonal(model, samples, params="all", progress=False, tokens_per_batch=16)
told(apart=apart(F, G), methods=F.methods)
"""


def test_experts_that_only_some_ranks_call(tmp_path: Path) -> None:
    a, b = (process.facts for process in run_ranks(tmp_path, EXPERTS, 2))
    assert a["apart"] <= 1e-6
    assert a["methods"] == b["methods"]


ENDING = """
mark = sys.argv[1] if len(sys.argv) > 1 else os.environ["ENDING"]
model = random_model("llama-gqa", 0.05)
samples = samples_of(*[12] * 400)
steps = 0
def on_the_way(module, arguments):
    global steps
    steps += 1
    if steps == 40 and rank == int(os.environ["WHO"]):
        if mark == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if mark == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        raise KeyError("a defect of rank's own")
    time.sleep(0.01)
model.register_forward_pre_hook(on_the_way)
try:
    tomfisher.fisher_diagonal(model, samples, progress=False, tokens_per_batch=12)
except ranks.RankError as error:
    sys.exit(f"said: {error}")
"""


@pytest.mark.parametrize(
    ("mark", "who", "sentence"),
    [
        ("killed", 1, "said: Rank 1 has ended, and the others with it: no sign of life for 4 s"),
        ("killed", 0, "said: The process group's store does not answer any more"),
        ("stopped", 1, "said: Rank 1 has ended, and the others with it: no sign of life for 4 s"),
        ("raised", 1, "said: Rank 1 has ended, and the others with it: KeyError"),
        ("raised", 0, "said: Rank 0 has ended, and the others with it: KeyError"),
    ],
)
def test_a_rank_that_ends_ends_the_others_with_a_sentence(
    mark: str, who: int, sentence: str, tmp_path: Path
) -> None:
    environment = {"ENDING": mark, "WHO": str(who), "TOMFISHER_RANK_TIMEOUT": "4"}
    if mark == "stopped":
        ended = run_ranks(tmp_path, ENDING, 3, environment, leave=[who])
    else:
        ended = run_ranks(tmp_path, ENDING, 3, environment)
    for rank, process in enumerate(ended):
        if rank == who:
            assert process.code == {"killed": -9, "stopped": -9, "raised": 1}[mark]
        else:
            assert process.code == 1
            assert sentence in process.err
            assert "Traceback" not in process.err


def test_torchrun_ends_with_the_rank_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os\nos.environ['WHO'] = '1'\n" + PRELUDE + GROUP + ENDING)
    ended = torchrun(tmp_path, 2, "script.py", "killed", timeout=120)
    assert ended.code != 0
    assert "SIGKILL" in ended.err or "Signal 9" in ended.err
