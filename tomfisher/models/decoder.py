"""Which part of a model decodes text, and where its layers are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from tomfisher.runtime.structure import is_linear

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_NO_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.LayerNorm, nn.RMSNorm)


def text_decoder(model: nn.Module) -> nn.Module:
    """The module that turns token vectors into the vectors that the head reads: `model.get_decoder()`.

    Vision and audio towers, the projectors that join them to the text, and further models beside it are not part
    of it. Where what the model names holds no list of layers (a head that is called `decoder`), it is the base
    model, or else the model itself.
    """
    named = (getattr(model, "get_decoder", lambda: None)(), getattr(model, "base_model", None), model)
    modules = [module for module in named if isinstance(module, nn.Module)]
    return next((module for module in modules if any(True for _ in _outermost(module))), modules[-1])


def layer_lists(model: nn.Module) -> dict[str, nn.Module]:
    """The lists of layers in the text decoder, by name: most models have one.

    A list is an `nn.ModuleList`, `nn.ModuleDict` or `nn.Sequential`, or a module all of whose children have numbers
    for names, that lies in no other list and holds more than single linear layers, embeddings or norms. Encoders of
    other inputs that lie inside the decoder have lists too; `tomfisher.fisher.linear_maps` asks the model which run.

    Returns:
        Name in `model.named_modules()` to list; empty where the decoder's layers are in no list.
    """
    names = {module: name for name, module in model.named_modules()}
    decoder = text_decoder(model)
    return {names[layers]: layers for layers in _outermost(decoder) if layers in names}


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if _is_list(child):
            if any(_is_layer(element) for element in child.children()):
                yield child
        else:
            yield from _outermost(child)


def _is_list(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children()]
    return isinstance(module, _LISTS) or (bool(names) and all(name.isdigit() for name in names))


def _is_layer(module: nn.Module) -> bool:
    simple = is_linear(module) or isinstance(module, _NO_LAYERS)
    return not simple and any(parameter.ndim > 1 for parameter in module.parameters())
