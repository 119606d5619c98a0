"""Which parameters a Fisher run covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from tomfisher.fisher.linear_maps import decoder_linear_weights
from tomfisher.models.families import Attention, UnsupportedModel, describe
from tomfisher.models.fixed import fixed_parameters
from tomfisher.runtime.structure import FUSED_QUERY_KEY, SEPARATE_QUERY_KEY

Params = str | Sequence[str] | Callable[[str, nn.Parameter], bool]
PRESETS = {
    "decoder-linear": "the weights of all linear maps in the text decoder's layers, experts included: the paper's set",
    "attention-qk": "query and key projections of the text decoder's layers",
    "all": "every parameter that the model does not mark as fixed",
}


def select_parameters(
    model: nn.Module, params: Params, linear: dict[str, nn.Parameter] | None = None
) -> dict[str, nn.Parameter]:
    """Choose parameters by preset, glob patterns or predicate.

    Args:
        model: any module.
        params: "decoder-linear" (`decoder_linear_weights`), "attention-qk" or "all"; a glob pattern or a list of
            them, matched against full parameter names ("model.layers.*.q_proj.weight"); or a predicate
            `(name, parameter) -> bool`. The presets leave out what the model itself marks as fixed
            (`tomfisher.models.fixed.fixed_parameters`); parameters that the user froze are selected.
        linear: what `decoder_linear_weights(model)` gives, where it is known already.

    Returns:
        Name to parameter, in model order; a tied parameter appears once, under its first name.

    Raises:
        TypeError: `params` is none of the above.
        ValueError: nothing is selected, a pattern matches nothing, or a selected parameter is no
            floating-point tensor.
    """
    named = dict(model.named_parameters())
    if callable(params):
        chosen = {name: p for name, p in named.items() if params(name, p)}
    elif params == "all":
        chosen = named
    elif params == "decoder-linear":
        chosen = decoder_linear_weights(model) if linear is None else linear
    elif params == "attention-qk":
        chosen = _attention_qk(model)
    elif isinstance(params, str):
        chosen = _match(named, [params])
    elif isinstance(params, Sequence):
        chosen = _match(named, list(params))
    else:
        raise TypeError(
            f"params must be a preset ({', '.join(PRESETS)}), glob patterns or a predicate, "
            f"got {type(params).__name__}."
        )
    fixed = set(left_out(model, params))
    chosen = {name: parameter for name, parameter in chosen.items() if name not in fixed}
    if not chosen:
        raise ValueError(
            f"params={params!r} selects nothing of this {type(model).__name__}, whose parameters start "
            f"{list(named)[:4]}. Use one of {', '.join(PRESETS)}, or a glob pattern such as '*.weight'."
        )
    for name, parameter in chosen.items():
        if not parameter.dtype.is_floating_point:
            raise ValueError(
                f"{name} is {parameter.dtype}: a quantised weight has no gradient. Load the model in a "
                "floating-point dtype, or leave this parameter out."
            )
    return chosen


def describe_params(params: Params) -> str | list[str]:
    """A selection as a record can hold it: the preset, the patterns, or the predicate's name."""
    if callable(params):
        return f"predicate {getattr(params, '__qualname__', type(params).__name__)}"
    return params if isinstance(params, str) else [str(pattern) for pattern in params]


def left_out(model: nn.Module, params: Params) -> list[str]:
    """Parameters that a preset passes over because the model itself marks them as fixed.

    Args:
        model: any module.
        params: as in `select_parameters`; patterns and predicates take what they name.
    """
    return fixed_parameters(model) if isinstance(params, str) and params in PRESETS else []


def _attention_qk(model: nn.Module) -> dict[str, nn.Parameter]:
    linear = decoder_linear_weights(model)
    chosen = {n: p for n, p in linear.items() if n.split(".")[-2] in SEPARATE_QUERY_KEY}
    fused = [n for n in linear if n.split(".")[-2] in FUSED_QUERY_KEY]
    if not chosen and not fused:  # no usual names: the model is asked what makes its queries and keys
        made = [
            (a.q.parameter, a.k.parameter) for a in _attentions(model) if a.q is not None and a.k is not None
        ]
        fused = [query for query, key in made if query == key]
        names = {name for pair in made for name in pair}
        chosen = {n: p for n, p in linear.items() if n in names and n not in fused}
    if fused and not chosen:
        whole = f"*.{fused[0].split('.')[-2]}.weight"
        raise ValueError(
            f"This model keeps query, key and value in one matrix ({fused[0]} and {len(fused) - 1} more), so "
            f"'attention-qk' cannot select them alone. Use params={whole!r} for all three."
        )
    return chosen


def _attentions(model: nn.Module) -> list[Attention]:
    try:
        layers = describe(model).layers
    except UnsupportedModel:
        return []
    return [layer.attention for layer in layers if layer.attention is not None]


def _match(named: dict[str, nn.Parameter], patterns: list[str]) -> dict[str, nn.Parameter]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                f"The pattern {pattern!r} matches no parameter; names look like {list(named)[:4]}. "
                f"Presets are {', '.join(PRESETS)}."
            )
    return {n: p for n, p in named.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}
