"""What a command's help shows together."""

from __future__ import annotations

import argparse
from typing import Any

from tomfisher.cli.common import MODEL_FIELDS, PERPLEXITY_FIELDS, WORDING_FIELDS

# the parts of a command's help, and the flags that stand there; all others stand under "options"
GROUPS = {
    "model": (
        *(*MODEL_FIELDS, "dtype", "eval_dtype", "batch_size", "impl", "stream", "max_memory", "boundary"),
        "parallel",
        "shard",
    ),
    "texts": (
        *("task", "control", "texts", "n_task", "n_control", "control_length", "max_length", "limit", "seed"),
        *("supervise", *WORDING_FIELDS),
    ),
    "Fisher diagonal": (
        *("labels", "reduction", "params", "task_store", "control_store", "tokens_per_batch", "fisher_dtype"),
        "precision",
    ),
    "mask": (
        *(
            "mask",
            "kappa",
            "kappas",
            "control_kappa",
            "criterion",
            "ratio_quantile",
            "scope",
            "fill",
            "compat",
        ),
        *("random_seeds", "random_kappas"),
    ),
    "answers": (
        "share_prefix",
        "method",
        "normalize",
        "max_new_tokens",
        "temperature",
        "top_p",
        "repetitions",
    ),
    "perplexity": PERPLEXITY_FIELDS,
    "analysis": (
        "analysis_prompts",
        "analysis_random_masks",
        "interaction",
        "parts",
        "maps",
        "compare_masks",
    ),
    "training": (
        *(
            "steps",
            "learning_rates",
            "train_batch_size",
            "n_train",
            "n_validation",
            "random_masks",
            "no_lora",
        ),
        "damage",
    ),
    "output": ("output_path", "overwrite"),
}


class Command(argparse.ArgumentParser):
    """A parser whose help shows every flag under its title in `GROUPS`."""

    def __init__(self, **options: Any) -> None:
        self._titled: dict[str, argparse._ArgumentGroup] = {}
        super().__init__(**options)
        self._titled = {title: self.add_argument_group(title) for title in GROUPS}

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As of `argparse`."""
        flag = names[0].removeprefix("--")
        for title, group in self._titled.items():
            if flag in GROUPS[title]:
                return group.add_argument(*names, **options)
        return super().add_argument(*names, **options)
