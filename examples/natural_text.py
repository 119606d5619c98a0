"""Do sentences of a novel about what someone believes need the same weights as the constructed stories?

Masks of SmolLM2 (κ of each matrix, task minus control) from disjoint halves of the stories, of a novel's sentences
in which someone thinks, believes or knows, and of its other sentences; then how much each pair of masks overlaps. Two
halves of one kind show how much overlap to expect. About three minutes on two cores. Any English novel in plain text
will do; "Pride and Prejudice", for one, is number 1342 of Project Gutenberg:

    .venv/bin/python examples/natural_text.py pride-and-prejudice.txt
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import tomfisher
from tomfisher.analysis import overlap
from tomfisher.models import load_model
from tomfisher.sample import Sample
from tomfisher.tasks import corpus

KAPPA = 1e-4
SAMPLES = 50  # of each half
WORDS = range(12, 61)  # of a sentence
VERB = r"(?:thinks?|thought|believed?s?|knows?|knew|suppose[sd]?|fancie[sd]|imagine[sd]?|hope[sd]?|doubt(?:s|ed))"
BELIEF = re.compile(rf"\b(?:he|she|they|who|[A-Z][a-z]+)\s+(?:\w+ly\s+|never\s+|always\s+)?{VERB}\b")
ANY_VERB = re.compile(rf"\b{VERB}\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text that are neither as short as a heading nor as long as a page."""
    flat = " ".join(text.split())
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z“\"])", flat) if len(s.split()) in WORDS]


def halves(things: list[str], what: str) -> dict[str, list[str]]:
    """Two disjoint random halves, in a fixed order."""
    if len(things) < 2 * SAMPLES:
        raise SystemExit(f"The text has {len(things)} sentences of kind {what!r}; {2 * SAMPLES} are needed.")
    drawn = random.Random(0).sample(things, 2 * SAMPLES)
    return {f"{what} 1": drawn[:SAMPLES], f"{what} 2": drawn[SAMPLES:]}


def main(path: str) -> None:
    """Print the table of overlaps."""
    loaded = load_model("smollm2-135m")
    every = sentences(Path(path).read_text(encoding="utf-8"))
    texts = halves([s for s in every if BELIEF.search(s)], "novel, belief")
    texts |= halves([s for s in every if not ANY_VERB.search(s)], "novel, other")
    stories = tomfisher.tasks.load("false-belief", n=2 * SAMPLES, split="fisher")
    samples: dict[str, list[Sample]] = {
        "stories 1": tomfisher.encode(loaded.tokenizer, stories[:SAMPLES]),
        "stories 2": tomfisher.encode(loaded.tokenizer, stories[SAMPLES:]),
    }
    samples |= {
        name: tomfisher.encode(loaded.tokenizer, part, supervise="all") for name, part in texts.items()
    }

    general, _ = corpus.split(corpus.load("python-reference"))
    windows = corpus.windows(loaded.tokenizer, general, length=128, n=2 * SAMPLES)
    control = tomfisher.top_fraction(tomfisher.fisher_diagonal(loaded.model, windows), KAPPA)
    masks = {
        name: tomfisher.top_fraction(tomfisher.fisher_diagonal(loaded.model, part), KAPPA) - control
        for name, part in samples.items()
    }
    print(f"{'first':17}{'second':17}{'weights':>15}{'shared':>8}{'Jaccard':>9}{'random':>9}")
    for pair in overlap(masks).pairs:
        counts = f"{pair.masked_a:,}/{pair.masked_b:,}"
        print(
            f"{pair.a:17}{pair.b:17}{counts:>15}{pair.shared:8,}{pair.jaccard:9.3f}{pair.expected_jaccard:9.5f}"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
