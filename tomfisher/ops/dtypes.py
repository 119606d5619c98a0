"""Which dtypes the operations take."""

from __future__ import annotations

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights, gradients and Fisher values."""

ACTIVATIONS = (torch.float16, torch.bfloat16, torch.float32)
"""Of what a model computes on the way: queries, keys, inputs of a layer."""
