"""Queries and keys as one layer's attention sees them, and the attention weights that follow from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tomfisher.models.attention_calls import AttentionCall


class QueryKey(NamedTuple):
    """What decides one layer's attention weights, for a padded batch.

    Attributes:
        q: queries after the rotation, `[B, H, T, D]`, in the model's dtype.
        k: keys after the rotation, `[B, H_kv, T, D]`.
        scale: factor of the scores q·k.
        window: how many last keys, its own included, a query sees; None: all.
        slopes: ALiBi, float32 `[H]`: `-slope·(t - j)` is added to the scores; None: nothing is.
        softcap: c of `c · tanh(score / c)`, before anything is added; None: no cap.
        sinks: `[H]` or `[B, H, T]`, the score of a key without a value that stands beside the others (GPT-OSS); None:
            there is none.
        bias: `[1 or B, 1 or H, T, T]`, added to the scores, -inf where a key is hidden; it then stands for causality,
            window and slopes. None: these say it all.
    """

    q: Tensor
    k: Tensor
    scale: float
    window: int | None = None
    slopes: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether scale, window and slopes are all there is to the scores."""
        return self.softcap is None and self.sinks is None and self.bias is None

    def take(self, rows: list[int], length: int | None = None) -> QueryKey:
        """Some rows of the batch, their first `length` positions; None: all."""
        bias = self.bias
        if bias is not None:
            bias = (bias[rows] if bias.shape[0] > 1 else bias)[..., :length, :length]
        sinks = self.sinks if self.sinks is None or self.sinks.ndim == 1 else self.sinks[rows, :, :length]
        return self._replace(q=self.q[rows, :, :length], k=self.k[rows, :, :length], bias=bias, sinks=sinks)

    def head(self, head: int) -> QueryKey:
        """One query head and its key head."""
        shared = self.q.shape[1] // self.k.shape[1]
        bias = self.bias
        return self._replace(
            q=self.q[:, head : head + 1],
            k=self.k[:, head // shared : head // shared + 1],
            slopes=None if self.slopes is None else self.slopes[head : head + 1],
            sinks=None
            if self.sinks is None
            else self.sinks[head : head + 1]
            if self.sinks.ndim == 1
            else self.sinks[:, head : head + 1],
            bias=bias if bias is None or bias.shape[1] == 1 else bias[:, head : head + 1],
        )


def attention_weights(seen: QueryKey, first: int = 0, last: int | None = None) -> Tensor:
    """Attention weights of the queries `first` to `last`, float32 `[B, H, rows, T]`.

    With a sink beside the keys a row sums to less than 1.

    Args:
        seen: queries and keys of a batch.
        first: the first query position.
        last: the one after the last; None: to the end.
    """
    q, wide = seen.q[:, :, first:last], torch.float32
    keys = seen.k.to(wide).repeat_interleave(seen.q.shape[1] // seen.k.shape[1], dim=1)
    scores = q.to(wide) @ keys.mT * seen.scale
    if seen.softcap is not None:
        scores = seen.softcap * (scores / seen.softcap).tanh()
    scores = scores + _added(seen, first, q.shape[2])
    if seen.sinks is None:
        return scores.softmax(-1)
    beside = seen.sinks[None, :, None] if seen.sinks.ndim == 1 else seen.sinks[:, :, first:last]
    beside = beside.to(scores)[..., None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, beside], dim=-1).softmax(-1)[..., :-1]


def _added(seen: QueryKey, first: int, rows: int) -> Tensor:
    """What is added to the scores, -inf where a key is hidden."""
    if seen.bias is not None:
        return seen.bias[:, :, first : first + rows].float()
    length = seen.q.shape[2]
    position = torch.arange(length, device=seen.q.device)
    back = position[first : first + rows, None] - position
    hidden = (back < 0) | (back >= (length if seen.window is None else seen.window))
    slopes = torch.zeros(1, device=seen.q.device) if seen.slopes is None else seen.slopes
    return (-slopes.view(-1, 1, 1) * back).masked_fill(hidden, -torch.inf)


def read_mask(mask: Tensor, window: int | None) -> tuple[int | None, Tensor | None, Tensor | None]:
    """What an attention mask says: causality alone, with a window, with ALiBi, or something else.

    Args:
        mask: `[1 or B, 1 or H, T, T]`, boolean (True is seen) or added to the scores.
        window: the window that the layer says it has.

    Returns:
        Window, slopes `[H]` and bias as `QueryKey` has them.
    """
    length = mask.shape[-2]
    if mask.dtype == torch.bool:
        hidden, added = ~mask, None
    else:
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        added = mask.float().masked_fill(hidden, 0)
    position = torch.arange(length, device=mask.device)
    back = position[:, None] - position
    for width in dict.fromkeys((window, None)):
        if torch.equal(hidden, ((back < 0) | (back >= (width or length))).expand_as(hidden)):
            if added is None or not bool(added.any()):
                return width, None, None
            if (slopes := _slopes(added, hidden, back)) is not None:
                return width, slopes, None
    whole = torch.zeros(hidden.shape, device=mask.device) if added is None else added
    return None, None, whole.masked_fill(hidden, -torch.inf)


def _slopes(added: Tensor, hidden: Tensor, back: Tensor) -> Tensor | None:
    """Float32 `[H]`, where every row is a constant less slope times distance; None where it is not."""
    if added.shape[-1] < 3:
        return None
    per_head = added[:, :, -1, 0] - added[:, :, -1, -1]
    slopes = -per_head[0] / (added.shape[-1] - 1)
    flat = (added + slopes.view(-1, 1, 1) * back).masked_fill(hidden, 0)
    row = flat[..., :1].masked_fill(hidden[..., :1], 0)
    rest = (flat - row).masked_fill(hidden | hidden[..., :1], 0).abs().max()
    return slopes if rest <= 1e-5 * added.abs().max() else None


def query_key(
    call: AttentionCall, scale: float | None = None, q: Tensor | None = None, k: Tensor | None = None
) -> QueryKey:
    """What decides the weights of a call.

    Args:
        call: the call.
        scale: factor of the scores, which a module's own code does not say.
        q: other queries instead of its own.
        k: other keys.
    """
    q, k = call.query if q is None else q, call.key if k is None else k
    if call.scores is not None:
        assert scale is not None and call.weights is not None
        window, slopes, bias = read_mask(_left_over(call, scale), None)
        return QueryKey(q, k, scale, window, slopes, bias=bias)
    options = call.options
    assert call.scale is not None
    seen = QueryKey(
        q,
        k,
        call.scale,
        options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=null_key(options),
    )
    mask, added = call.mask, options.get("position_bias")
    if mask is None and options.get("is_causal", getattr(call.module, "is_causal", True)) is False:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    if mask is not None and mask.ndim == 4:
        window, slopes, bias = read_mask(mask[..., : k.shape[2]], seen.window)
        seen = seen._replace(window=window, slopes=slopes, bias=bias)
    if added is not None:
        seen = seen._replace(bias=_added(seen, 0, q.shape[2]) + added, window=None, slopes=None)
    return seen


def null_key(options: dict[str, Any]) -> Tensor | None:
    """The scores `[H]` or `[B, H, T]` of a key without a value, among the arguments of a call; None: it has none."""
    scores = next((options[name] for name in ("s_aux", "sinks") if options.get(name) is not None), None)
    return scores if scores is None or scores.ndim < 4 else scores[..., 0]


def _left_over(call: AttentionCall, scale: float) -> Tensor:
    """What a module's own code has added to scale·q·k, -inf where it hides a key."""
    assert call.scores is not None and call.weights is not None
    shared = call.query.shape[1] // call.key.shape[1]
    products = call.query.float() @ call.key.float().repeat_interleave(shared, dim=1).mT * scale
    rest = call.scores.float() - products
    hidden = (call.weights == 0) & (call.scores < -1e3)
    size = call.scores.masked_fill(hidden, 0).abs().max()
    rest = rest.masked_fill(hidden, 0)
    if float(rest.abs().max()) <= 1e-5 * float(size):
        rest = torch.zeros_like(rest)
    return rest.masked_fill(hidden, -torch.inf)


def is_biased(seen: QueryKey) -> bool:
    """Whether numbers are added to the scores beyond what hides keys."""
    return seen.bias is not None and bool(seen.bias.nan_to_num(0, 0, 0).any())
