"""How transformers is to split a model over the ranks of a process group while it loads it."""

from __future__ import annotations

from typing import Any

from tomfisher.runtime import ranks

KINDS = ("tensor", "experts")


def plan_of(parallel: str | None) -> Any:
    """The `DistributedConfig` of transformers by which a model is split over all ranks; None for none.

    Args:
        parallel: "tensor", its matrices; "experts", the same, and fused experts whole on their ranks; or None.

    Raises:
        ValueError: it is none of these, or there is but one process.
    """
    if parallel is None:
        return None
    if parallel not in KINDS:
        raise ValueError(f"parallel must be {' or '.join(KINDS)}, got {parallel!r}.")
    size = ranks.current().size
    if size == 1:
        raise ValueError(
            f"parallel={parallel!r} splits a model over several processes, and this one is alone. Start them with "
            "torchrun, such as `torchrun --nproc_per_node 2 -m tomfisher ...`."
        )
    from transformers.distributed import DistributedConfig

    return DistributedConfig(tp_size=size, **({"ep_size": size} if parallel == "experts" else {}))
