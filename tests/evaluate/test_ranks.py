"""Questions, completions and windows split over ranks: the numbers of one process, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import run_ranks

pytestmark = pytest.mark.slow

TOGETHER = """
from tomfisher import evaluate, tasks, testbed
from tomfisher.models import load_model

loaded = load_model("testbed-llama", device="cpu")
stories = tasks.load("testbed", n=24, seed=0)
text = " ".join(story.prompt for story in stories)

def scored(**options):
    return evaluate.score(loaded.model, loaded.tokenizer, stories, progress=False, **options)
def perplexity(**options):
    return evaluate.perplexity(loaded.model, loaded.tokenizer, text, progress=False, **options)

measured = {
    "packed": lambda: scored(batch_size=6),
    "whole": lambda: scored(batch_size=5, share_prefix=False),
    "steps": lambda: scored(batch_size=4, pack=False),
    "one batch": lambda: scored(batch_size=10_000),
    "greedy": lambda: scored(method="generate", batch_size=3),
    "drawn": lambda: scored(method="generate", batch_size=4, temperature=0.8, repetitions=2),
    "perplexity": lambda: perplexity(window=16, stride=8),
}
told(together={name: measure().to_dict() for name, measure in measured.items()})
with ranks.alone():
    if rank == 0:
        told(one={name: measure().to_dict() for name, measure in measured.items()})
told(questions=refusal(evaluate.score, loaded.model, loaded.tokenizer, stories[rank:], progress=False))
told(window=refusal(perplexity, window=16 + rank))
with ranks.alone():
    told(alone=scored(batch_size=6).records[0].correct)
if rank == 1:
    with torch.no_grad():
        next(loaded.model.parameters())[:8] += 1
told(weights=refusal(perplexity, window=16))
"""


def test_several_ranks_measure_what_one_does(tmp_path: Path) -> None:
    ended = [process.facts for process in run_ranks(tmp_path, TOGETHER, 3)]
    one = ended[0]["one"]
    for facts in ended:
        for name in one:
            assert {key: facts["together"][name][key] for key in one[name]} == one[name], name
        assert "Rank 1 differs from rank 0 in what is scored" in facts["questions"]
        assert "texts_sha256" in facts["window"]
        assert "model.weights_sha256" in facts["weights"]
