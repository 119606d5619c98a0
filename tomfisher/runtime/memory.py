"""Running out of memory: recognising it, and how many tokens to try at once."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping

import torch
from torch import nn

CPU_TOKENS = 512
_GPU_TOKENS = 16_384
_GPU_LEAST, _GPU_STEP = 256, 256
SHARE = 0.8  # of the free memory: the rest is for kernels' tables, the squares of a fallback, fragments
_ACTIVATION_COPIES = 24  # activations kept per token and layer, in units of the hidden size
_LOGIT_COPIES = 2  # logits and their gradient


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def release() -> None:
    """Give back what a failed batch still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Peak:
    """How much more memory a block of work takes on each GPU; nothing on the CPU.

    PyTorch's peak statistics of these GPUs are reset.

    Args:
        devices: where it works.

    Attributes:
        bytes: after the block, device to bytes.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._before = {device: 0 for device in devices if device.type == "cuda"}
        self.bytes: dict[torch.device, int] = {}

    def __enter__(self) -> Peak:
        for device in self._before:
            torch.cuda.reset_peak_memory_stats(device)
            self._before[device] = torch.cuda.memory_allocated(device)
        return self

    def __exit__(self, *exc: object) -> None:
        self.bytes = {d: torch.cuda.max_memory_allocated(d) - before for d, before in self._before.items()}


def free_bytes(device: torch.device) -> int:
    """What a CUDA device can still give: what no process has, and what PyTorch keeps without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def token_budget(
    tokens_per_batch: int | str,
    model: nn.Module,
    device: torch.device,
    reserved: Mapping[torch.device, int] | None = None,
    bytes_per_token: Mapping[torch.device, int] | None = None,
) -> int:
    """The budget that `tokens_per_batch` asks for: a number as it is; "auto" is a first guess.

    The run halves it where it does not fit. On the CPU 512: fewer are slower, more keep more activations
    (benchmarks/README.md). On GPUs as many as fit into 80 % of the free memory of each that the model is on, from
    256 to 16,384 in steps of 256.

    Args:
        tokens_per_batch: a number, or "auto".
        model: a causal language model.
        device: where its batches go.
        reserved: per GPU, bytes of the free memory that are for something else.
        bytes_per_token: per GPU, what a token holds there between forward and backward; None:
            `activation_bytes_per_token`, shared out as the parameters are.

    Raises:
        ValueError: it is neither.
    """
    if tokens_per_batch == "auto":
        if device.type != "cuda":
            return CPU_TOKENS
        held = bytes_per_token or _shared_out(model)
        return min(
            tokens_that_fit(int(SHARE * (free_bytes(gpu) - (reserved or {}).get(gpu, 0))), each)
            for gpu, each in held.items()
        )
    if isinstance(tokens_per_batch, int) and not isinstance(tokens_per_batch, bool):
        return tokens_per_batch
    raise ValueError(f"tokens_per_batch must be 'auto' or a number of tokens, got {tokens_per_batch!r}.")


def _shared_out(model: nn.Module) -> dict[torch.device, int]:
    """`activation_bytes_per_token` of each GPU, in proportion to the parameters that are there."""
    sizes: dict[torch.device, int] = {}
    for parameter in model.parameters():
        sizes[parameter.device] = sizes.get(parameter.device, 0) + parameter.numel()
    whole, total = activation_bytes_per_token(model), sum(sizes.values())
    gpus = {device: size for device, size in sizes.items() if device.type == "cuda"}
    return {device: max(1, whole * size // total) for device, size in gpus.items()}


def tokens_that_fit(room: int, bytes_per_token: int) -> int:
    """Tokens of a batch on a GPU whose activations may take `room` bytes."""
    fitting = room // max(1, bytes_per_token) // _GPU_STEP * _GPU_STEP
    return max(_GPU_LEAST, min(_GPU_TOKENS, fitting))


def activation_bytes_per_token(model: nn.Module) -> int:
    """Rough estimate of what one token holds between forward and backward: activations and its logits."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    width = int(getattr(config, "hidden_size", 4096))
    layers = int(getattr(config, "num_hidden_layers", 32))
    vocabulary = int(getattr(config, "vocab_size", 32_000))
    size = next(model.parameters()).element_size()
    return size * (layers * width * _ACTIVATION_COPIES + vocabulary * _LOGIT_COPIES)
