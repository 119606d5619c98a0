"""The whole method in Python, on the shipped model: Fisher, mask, perturb, evaluate. About a minute on two cores.

Run it with `.venv/bin/python examples/quickstart.py`.
"""

from __future__ import annotations

import tomfisher
from tomfisher.models import load_model
from tomfisher.tasks import corpus

KAPPA = 3e-3


def main() -> None:
    """Print false-belief accuracy: untouched, without the sensitive weights, and without as many random ones."""
    loaded = load_model("testbed-llama")
    model, tokenizer = loaded.model, loaded.tokenizer

    stories = tomfisher.tasks.load("testbed", n=200, split="fisher")
    fisher_text, _ = corpus.split(corpus.load("testbed"))
    task = tomfisher.fisher_diagonal(model, tomfisher.encode(tokenizer, stories))
    control = tomfisher.fisher_diagonal(model, corpus.windows(tokenizer, fisher_text, length=128, n=200))

    mask = tomfisher.top_fraction(task, KAPPA) - tomfisher.top_fraction(control, KAPPA)
    questions = tomfisher.tasks.load("testbed", n=320)

    print(f"whole model    {accuracy(model, tokenizer, questions):.2f}")
    for name, chosen in (("task - control", mask), ("random", mask.random_like(seed=0))):
        with tomfisher.perturb(model, chosen):
            print(f"{name:14} {accuracy(model, tokenizer, questions):.2f}   ({chosen.nnz} weights)")
    print(f"whole again    {accuracy(model, tokenizer, questions):.2f}")


def accuracy(model: object, tokenizer: object, questions: list[tomfisher.tasks.Story]) -> float:
    """Share of false-belief questions about beliefs that the model answers correctly."""
    beliefs = [s for s in questions if s.condition.endswith("/false-belief") and s.kind == "belief"]
    return tomfisher.evaluate.score(model, tokenizer, beliefs).by_group()["all"].accuracy


if __name__ == "__main__":
    main()
