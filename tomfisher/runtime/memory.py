"""Running out of memory: recognising it, and how many tokens to try at once."""

from __future__ import annotations

import gc

import torch
from torch import nn

_CPU_TOKENS = 512
_GPU_TOKENS = 16_384
_LOGIT_BYTES = 16  # logits, their log-softmax and its gradient, float32
_ACTIVATION_COPIES = 40  # activations kept per token and layer, in units of the hidden size


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


def token_budget(tokens_per_batch: int | str, model: nn.Module, device: torch.device) -> int:
    """The budget that `tokens_per_batch` asks for: a number as it is, "auto" by `auto_tokens_per_batch`.

    Raises:
        ValueError: it is neither.
    """
    if tokens_per_batch == "auto":
        return auto_tokens_per_batch(model, device)
    if isinstance(tokens_per_batch, int) and not isinstance(tokens_per_batch, bool):
        return tokens_per_batch
    raise ValueError(f"tokens_per_batch must be 'auto' or a number of tokens, got {tokens_per_batch!r}.")


def auto_tokens_per_batch(model: nn.Module, device: torch.device) -> int:
    """A first guess of the token budget; out-of-memory halves it during the run.

    On the CPU 512: fewer are slower, more keep more activations (benchmarks/README.md). On a GPU half
    the free memory over the bytes that one token's activations and logits need, at most 16,384 tokens.
    """
    if device.type != "cuda":
        return _CPU_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    return max(256, min(_GPU_TOKENS, free // 2 // activation_bytes_per_token(model)))


def activation_bytes_per_token(model: nn.Module) -> int:
    """Rough estimate of what one token holds between forward and backward: activations and its logits."""
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    width = int(getattr(config, "hidden_size", 4096))
    layers = int(getattr(config, "num_hidden_layers", 32))
    vocabulary = int(getattr(config, "vocab_size", 32_000))
    size = next(model.parameters()).element_size()
    return layers * width * size * _ACTIVATION_COPIES + vocabulary * _LOGIT_BYTES
