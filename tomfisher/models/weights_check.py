"""Whether attention weights follow from queries and keys in the way that is thought, asked of the call itself."""

from __future__ import annotations

import torch
from torch import Tensor

from tomfisher.models.attention_calls import AttentionCall
from tomfisher.models.queries import attention_weights, query_key
from tomfisher.models.rotary import tolerance

NOT_CAUSAL = "is not causal"


def fitted_scale(call: AttentionCall) -> float | None:
    """The factor of q·k in the scores of a module's own code; None where they are no multiple of it.

    What is added to the scores (mask, ALiBi) is the same in every row of the batch, so it drops out of differences.
    """
    assert call.scores is not None
    shared = call.query.shape[1] // call.key.shape[1]
    products = call.query.double() @ call.key.double().repeat_interleave(shared, dim=1).mT
    seen = call.scores.abs() < 1e3
    dots = torch.where(seen, products - products[:1], 0)
    scores = torch.where(seen, call.scores.double() - call.scores[:1].double(), 0)
    scale = float((dots * scores).sum() / dots.square().sum().clamp_min(1e-30))
    rest = (scores - scale * dots).abs().max()
    return scale if rest <= tolerance(call.scores.dtype) * call.scores[seen].abs().max() else None


def wrong_weights(call: AttentionCall, scale: float | None) -> str | None:
    """Why the weights of a call are not the softmax that `attention_weights` takes; None where they are.

    A call through the interface, or of `scaled_dot_product_attention`, is asked again with random queries, keys and
    values; in a module's own code the softmax itself was seen.
    """
    if call.scores is None:
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(x.shape, generator=generator).to(x) for x in (call.query, call.key, call.value)
        )
        assert call.again is not None
        output = call.again(q, k, v)
        weights = attention_weights(query_key(call, q=q, k=k))
        shared = q.shape[1] // v.shape[1]
        expected = weights.double() @ v.double().repeat_interleave(shared, dim=1)
        computed: Tensor | None = output.transpose(1, 2) if call.interface else output
    elif scale is None:
        return "takes the softmax of something else than a multiple of q·k plus a mask"
    else:
        expected = attention_weights(query_key(call, scale)).double()
        computed = call.weights
    assert computed is not None
    if _reaches_ahead(call, scale):
        return NOT_CAUSAL
    if float((computed.double() - expected).abs().max()) > tolerance(computed.dtype) * float(
        computed.abs().max()
    ):
        return "does not weigh values by a causal softmax of q·k"
    return None


def _reaches_ahead(call: AttentionCall, scale: float | None) -> bool:
    weights = attention_weights(query_key(call, scale))
    return bool(weights.triu(1).any())
