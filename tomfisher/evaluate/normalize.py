"""Comparing choices of different lengths: by total log-probability, or per token, character or byte."""

from __future__ import annotations

from collections.abc import Sequence

TOTAL, TOKEN, CHARACTER, BYTE = "total", "token", "character", "byte"
NORMALIZATIONS = (TOTAL, TOKEN, CHARACTER, BYTE)


def check_normalize(normalize: str) -> None:
    """Raise ValueError unless it is one of `NORMALIZATIONS`."""
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}.")


def scores_of(
    logprobs: Sequence[float], choices: Sequence[str], num_tokens: Sequence[int], normalize: str
) -> tuple[float, ...]:
    """What the choices of one question are compared by: their log-probabilities, divided by their lengths.

    The harness of EleutherAI (`lm_eval/api/task.py`) calls the accuracy of the largest total `acc`, that of the largest
    value per character `acc_norm` and that per byte `acc_bytes`; the lengths are those of the choice alone, without
    the space before it. For ASCII texts the last two are the same.

    Args:
        logprobs: log p(gap + choice | prompt) of every choice, in nats.
        choices: their texts, without the gap.
        num_tokens: how many tokens each log-probability is the sum of, the gap's included.
        normalize: "total", "token" (`num_tokens`), "character" (Unicode code points) or "byte" (of UTF-8).

    Returns:
        One value per choice: nats, or nats per token, character or byte.
    """
    check_normalize(normalize)
    lengths: Sequence[int] = {
        TOTAL: [1] * len(choices),
        TOKEN: num_tokens,
        CHARACTER: [len(choice) for choice in choices],
        BYTE: [len(choice.encode(errors="surrogatepass")) for choice in choices],
    }[normalize]
    return tuple(value / length for value, length in zip(logprobs, lengths, strict=True))


def decide(values: Sequence[float], answer: int) -> tuple[float, int, float]:
    """Correctness, prediction and margin of one question.

    Args:
        values: what its choices are compared by.
        answer: index of the right one.

    Returns:
        `(correct, best, margin)`: with m choices at the largest value, 1/m if the right one is among them, else 0; the
        index of the first of them; the right one's value minus the largest other one.
    """
    largest = max(values)
    first = [i for i, value in enumerate(values) if value == largest]
    others = [value for i, value in enumerate(values) if i != answer]
    return (1.0 / len(first) if answer in first else 0.0), first[0], values[answer] - max(others)
