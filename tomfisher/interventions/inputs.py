"""Queries, keys and mask of one attention layer, on their way into the attention function."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionInputs(NamedTuple):
    """Arguments of an attention function, as transformers' attention interface gets them.

    Attributes:
        query: `[B, H, T, D]`, rotated.
        key: `[B, H_kv, S, D]`, rotated; the keys of a cache come first.
        mask: None (causal), `[B, S]` of ones and zeros, or `[B or 1, 1 or H, T, S]`, boolean or additive.
        scale: factor of the scores q·k.
        softcap: c of `c · tanh(score / c)`; None: no cap.
        window: how many last keys, its own included, a query sees; None: all.
        past: tokens before these queries, whose keys a cache holds or has held.
        sinks: `[H]` or `[B, H, T]`, the score of a further key that has no value (GPT-OSS).
        added: `[1 or B, 1 or H, T, S]`, added to the scores as well (relative positions).
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    softcap: float | None = None
    window: int | None = None
    past: int = 0
    sinks: Tensor | None = None
    added: Tensor | None = None

    @property
    def dropped(self) -> int:
        """Keys that a cache of bounded length has forgotten."""
        return max(0, self.past + self.query.shape[2] - self.key.shape[2])

    def slot(self, position: int) -> tuple[Tensor, Tensor]:
        """Where the key of a token lies, counted from each row's first token that is not padding.

        A cache holds the first keys of a text (`dropped` says if it has lost them), so this differs from the
        position among the present queries.

        Args:
            position: 0 for the first token.

        Returns:
            int64 `[B]`, its index on the key axis, and bool `[B]`, whether it is present.
        """
        slot = self._first() + position
        present = (slot >= 0) & (slot < self.key.shape[2])
        return slot.clamp(0, self.key.shape[2] - 1), present

    def _first(self) -> Tensor:
        """Index `[B]` of each row's first real key; negative where a cache has dropped it."""
        rows, device = self.query.shape[0], self.query.device
        unpadded = torch.full((rows,), -self.dropped, device=device)
        if self.mask is None:
            return unpadded
        if self.mask.ndim == 2:
            padding = self.mask[:, : self.key.shape[2]] == 0
            within = torch.ones_like(padding)
        else:
            reach = self._reach()
            visible = self.additive()[:, 0] > -torch.inf
            padding, within = (reach & ~visible).any(1), reach.any(0).expand(len(visible), -1)
        leading = (padding | ~within).long().cumprod(-1)
        padded = (leading * padding).any(-1)
        return torch.where(padded, leading.sum(-1), unpadded).expand(rows)

    def _reach(self) -> Tensor:
        """Bool `[T, S]`: which keys a query could see without padding, by causality and window."""
        back = self._back()
        return (back >= 0) & (back < (back.numel() if self.window is None else self.window))

    def _back(self) -> Tensor:
        """Int64 `[T, S]`: how many tokens each key lies before each query."""
        begin, device = self.past - self.dropped, self.query.device
        queries = torch.arange(begin, begin + self.query.shape[2], device=device)
        return queries[:, None] - torch.arange(self.key.shape[2], device=device)

    def additive(self) -> Tensor:
        """The mask as a bias on the scores, -inf where a key is hidden, `[1 or B, 1 or H, T, S]`."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        causal = (self._back() >= 0)[None, None]
        mask = causal if self.mask is None else self.mask[..., : self.key.shape[2]]
        if mask.dtype == torch.bool:
            return torch.zeros(mask.shape, dtype=wide, device=mask.device).masked_fill(~mask, -torch.inf)
        return mask.to(wide).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)

    def scores(self) -> Tensor:
        """Input of the softmax, `[B, H, T, S]`, at least float32, -inf where a key is hidden."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        shared = self.query.shape[1] // self.key.shape[1]
        keys = self.key.to(wide).repeat_interleave(shared, dim=1)
        scores = self.query.to(wide) @ keys.transpose(2, 3) * self.scale
        if self.softcap is not None:
            scores = self.softcap * (scores / self.softcap).tanh()
        return scores + self.additive() + (0 if self.added is None else self.added)

    def with_bias(self, bias: Tensor, index: Tensor) -> AttentionInputs:
        """The same inputs with a bias added to the scores of one key of every row.

        Args:
            bias: `[B, H, T]`, -inf hides the key.
            index: int64 `[B]`, of the key.
        """
        shape = (*bias.shape, self.key.shape[2])
        at = index[:, None, None, None].expand(*bias.shape, 1)
        mask = self.additive().expand(shape).scatter_add(-1, at, bias[..., None])
        lowest = torch.finfo(self.query.dtype).min
        return self._replace(mask=mask.clamp_min(lowest).to(self.query.dtype))

    def with_key(self, position: int, heads: Tensor, change: Callable[[Tensor], Tensor]) -> AttentionInputs:
        """The same inputs with the key of one token changed, where it is present.

        Args:
            position: of the token, see `slot`.
            heads: int64, key heads to change.
            change: maps `[rows, len(heads), D]`, at least float32, to the new keys.
        """
        slot, present = self.slot(position)
        rows = present.nonzero().flatten()
        key = self.key.clone()
        where = (rows[:, None], heads.to(key.device), slot[rows][:, None])
        key[where] = change(key[where].to(torch.promote_types(key.dtype, torch.float32))).to(key.dtype)
        return self._replace(key=key)


Edit = Callable[[AttentionInputs], AttentionInputs]
