from __future__ import annotations

from tomfisher.results.evaluation import evaluation_table


def state(accuracy, p=None, **more):
    score = {"n": 4, "accuracy": accuracy, "ci95": [0.25, 0.75], "p_vs_baseline": p}
    return {"conditions": {"all": score}, **more}


def test_a_model_alone_and_beside_the_masked_one():
    base = state(0.5, perplexity=12.345, word_perplexity=None)
    alone = evaluation_table({"baseline": base}).splitlines()
    assert alone[2].split() == ["all", "4", "0.500", "0.250", "to", "0.750"]
    assert alone[3:] == ["perplexity: 12.35 per token, not defined per word"]
    masked = state(0.25, 0.125, perplexity=20.0, word_perplexity=40.0)
    both = evaluation_table({"baseline": base, "masked": masked}).splitlines()
    assert both[2].split()[6:] == ["0.250", "0.250", "to", "0.750", "0.12"]
    assert both[3].startswith("p: ") and both[3].endswith("not corrected for their number")
    assert both[-1] == "perplexity, masked: 20 per token, 40 per word"
