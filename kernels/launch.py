"""What every launcher does first: see that the kernels can run on the tensors it was given, and where."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

# What every launch is given. Triton 3.10 changes the default to False, and 3.9 warns of that: products would no longer
# be fused with the additions behind them, at twice the instructions and with other last bits.
FUSED = {"enable_fp_fusion": True}


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require_device(tensor: Tensor) -> None:
    """Refuse a tensor that no kernel can run on.

    Args:
        tensor: any operand.

    Raises:
        RuntimeError: it is not on a GPU, and the interpreter is off.
    """
    if tensor.device.type != "cuda" and not interpreting():
        raise RuntimeError(
            f"impl='triton' needs CUDA tensors (got {tensor.device.type}); "
            "set TRITON_INTERPRET=1 to run kernels in the interpreter."
        )


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Context in which kernels start on the tensor's GPU rather than on the current one.

    Args:
        tensor: any operand.

    Raises:
        RuntimeError: as for `require_device`.
    """
    require_device(tensor)
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def capturing() -> bool:
    """Whether what the current stream is given goes into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A table of the host on a device, on its way when this returns: nothing waits for the copy but what reads it.

    Args:
        array: not used again by the caller.
        device: where it goes.

    Returns:
        The tensor, of the array's dtype.

    Raises:
        RuntimeError: a CUDA graph is being captured: a replay would copy what the host has there by then.
    """
    if capturing():
        raise RuntimeError(
            "a table of this call is not on the GPU yet, and a CUDA graph is being captured. Only squared_gradient_ "
            "can be captured, after the same call on the same stream: torch.cuda.graph(g, stream=s)."
        )
    host = torch.from_numpy(array)
    # the pinned copy stays until the transfer is over: PyTorch's allocator of pinned memory sees to that
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
