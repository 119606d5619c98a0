"""PyTorch's global state, set aside for the time of a public call: the same numbers as in a fresh process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")
_EXACT = ("none", "ieee")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run the block as in a fresh process, whatever the caller has switched on; a decorator too.

    Gradients are on, `torch.inference_mode` and autocast off, the default dtype is float32 and the default device the
    CPU; deterministic mode, anomaly detection and reduced precision of float32 products (TF32, bfloat16) are off.
    Everything is as the caller left it after any exit. Inside a generator, leave the block before a `yield` that
    hands over to the caller.

    Raises:
        RuntimeError: the call comes from inside a transform of `torch.func`, which would see through it.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "tomfisher was called from inside a transform of torch.func (grad, vmap, ...), where its tensors hold no "
            "numbers of their own. Call it outside."
        )
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad():
        _no_autocast(stack)
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.are_deterministic_algorithms_enabled():
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.use_deterministic_algorithms(False)
            stack.callback(torch.use_deterministic_algorithms, True, warn_only=warn_only)
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        _exact_products(stack)
        yield


def _no_autocast(stack: ExitStack) -> None:
    """Switch autocast off; what it has cached of the weights is forgotten, since the call may change them."""
    for device in _AUTOCAST_DEVICES:
        if torch.is_autocast_enabled(device):
            torch.set_autocast_enabled(device, False)
            stack.callback(torch.set_autocast_enabled, device, True)
            stack.callback(torch.clear_autocast_cache)


def _exact_products(stack: ExitStack) -> None:
    """Multiply float32 matrices in float32, on CUDA and by oneDNN.

    PyTorch has two interfaces to the same settings and refuses to answer by the older one after the newer one was
    used; what was set by the older one is put back by it.
    """
    mkldnn: Any = torch.backends.mkldnn
    owners: tuple[Any, ...] = (torch.backends.cuda.matmul, mkldnn.matmul)
    before = [owner.fp32_precision for owner in owners]
    if all(precision in _EXACT for precision in before):
        return
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer interface
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = "ieee"
            stack.callback(setattr, owner, "fp32_precision", precision)
    else:
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, older)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's own random numbers, on every device in use, for the block; they go on as before after it.

    Args:
        seed: any integer that fits into 64 bits.
    """
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


@contextmanager
def on_cpu(seed: int, threads: int | None) -> Iterator[None]:
    """`plain_torch` and `seeded`, with so many CPU threads (None: as many as before); all is as before after it."""
    before = torch.get_num_threads()
    with plain_torch(), seeded(seed):
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
