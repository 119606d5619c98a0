"""What the values of some settings stand for: fractions of weights, parameters, fills."""

from __future__ import annotations

NAMED_PARAMS = ("decoder-linear", "attention-qk", "all")


def check_kappa(kappa: float, name: str = "kappa") -> float:
    """The value, if it lies strictly between 0 and 1.

    Raises:
        ValueError: it does not.
    """
    if not 0.0 < kappa < 1.0:
        note = " Kappa 0 is the baseline, which is always measured." if kappa == 0 else ""
        raise ValueError(
            f"{name} must lie strictly between 0 and 1 (a fraction such as 1e-4), got {kappa:g}.{note}"
        )
    return kappa


def parse_params(text: str) -> str | list[str]:
    """The `params` setting as `fisher_diagonal` takes it: a name, or a list of glob patterns."""
    return text if text in NAMED_PARAMS else [part.strip() for part in text.split(",") if part.strip()]


def parse_fill(text: str | float) -> str | float:
    """The fill as `tomfisher.perturb` takes it: a word, "scale:FACTOR", or a number.

    Raises:
        ValueError: it is none of these.
    """
    name, _, factor = str(text).partition(":")
    if name in ("mean", "zero", "noise") and not factor:
        return name
    try:
        number = float(factor) if name == "scale" else float(text)
    except ValueError:
        raise ValueError(
            f"fill must be mean, zero, noise, scale:FACTOR (e.g. scale:0.5) or a number, got {text!r}."
        ) from None
    return f"scale:{factor}" if name == "scale" else number
