"""Code words: one for each output of each linear map, as signs over the rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 26
_ODD = 0x9E3779B97F4A7C15 % 2**ROWS | 1  # of Fibonacci hashing
_INVERSE = pow(_ODD, -1, 2**ROWS)
_WHOLE = 2**ROWS - 1


class Codes:
    """Gives out words to the linear maps of a model's attention, and says whose words it reads.

    Number n has the word n·odd mod 2^ROWS, bit by bit over the rows: no two are alike, and the number is read off the
    word by the inverse of the odd number.
    """

    def __init__(self) -> None:
        self._begins: dict[int, int] = {}
        self._modules: list[tuple[nn.Module, int, int]] = []  # module, first number, how many
        self._next = 0

    def speak(self, module: nn.Module, args: tuple[object, ...], output: object) -> Tensor | None:
        """A forward hook that gives words for what the module gives, the same at every position."""
        if not isinstance(output, Tensor) or output.ndim < 2 or not output.is_floating_point():
            return None
        rows, width = output.shape[0], output.shape[-1]
        if rows % ROWS or (output.ndim > 2 and rows != ROWS):
            return None
        if id(module) not in self._begins:
            self._begins[id(module)] = self._next
            self._modules.append((module, self._next, width))
            self._next += width
        words = Codes.words(width, output, self._begins[id(module)])
        words = words.repeat_interleave(rows // ROWS, dim=0)
        return words.view(rows, *[1] * (output.ndim - 2), width).expand_as(output).contiguous()

    def makers(self, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """The maps whose words stand in x `[ROWS, heads, D]`, with their outputs `[heads, D]`, -1 where not theirs.

        Returns:
            Nothing where a word is no map's.
        """
        number = Codes.read(x.flatten(1), self._next).view(x.shape[1:])
        if bool((number < 0).any()):
            return []
        made = []
        for module, begin, width in self._modules:
            here = (number >= begin) & (number < begin + width)
            if bool(here.any()):
                made.append((module, (number - begin).masked_fill(~here, -1)))
        return made

    @staticmethod
    def words(count: int, like: Tensor, begin: int = 0) -> Tensor:
        """±1 `[ROWS, count]`, the words of `count` numbers."""
        number = torch.arange(begin, begin + count, device=like.device) * _ODD & _WHOLE
        bits = number >> torch.arange(ROWS, device=like.device)[:, None] & 1
        return (2 * bits - 1).to(like.dtype)

    @staticmethod
    def read(x: Tensor, count: int) -> Tensor:
        """Int64 `[n]` on the CPU: which of `count` words each column of x `[ROWS, n]` is, up to a factor; -1: none."""
        x = x.detach().float().cpu()
        bits = (x > 0).long()
        word = (bits << torch.arange(ROWS)[:, None]).sum(0)
        number = word * _INVERSE & _WHOLE
        turned = (word ^ _WHOLE) * _INVERSE & _WHOLE  # a negative factor
        number = torch.where(number < count, number, torch.where(turned < count, turned, -1))
        unsure = ((x == 0) | ~x.isfinite()).any(0) | (number < 0)
        if bool(unsure.any()):
            number[unsure] = _nearest(x[:, unsure], count)
        return number


def _nearest(x: Tensor, count: int) -> Tensor:
    """The one word that all signs of a column agree with, where some are 0 (a mean was taken off); -1: none."""
    if not count:
        return torch.full(x.shape[1:], -1)
    known = x.nan_to_num(0, 0, 0).sign()
    agree = (known.T @ Codes.words(count, known)).abs()
    best = agree.max(-1)
    fits = (best.values == known.abs().sum(0)) & (best.values > ROWS // 2)
    fits &= (agree == best.values[:, None]).sum(-1) == 1
    return torch.where(fits, best.indices, -1)
