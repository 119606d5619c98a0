"""`open_model`: a model whose weights stay in their files until a layer is needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tomfisher.models import hub
from tomfisher.models.adapters import adapter_in
from tomfisher.models.bases import adapter_folder
from tomfisher.models.decoder import layer_lists
from tomfisher.models.gguf import recorded
from tomfisher.models.load import (
    LoadedModel,
    describe_source,
    find_place,
    fingerprint,
    head_of,
    resolve_dtype,
    set_pad_token,
)
from tomfisher.models.loading_report import first_of
from tomfisher.models.pretrained import Place, assemble, check_assembled, check_kind, read_tokenizer
from tomfisher.models.recipes import Plan, Recipe, headers_only
from tomfisher.models.rewritten import write_again
from tomfisher.models.stored import is_zero_matrix, warn_of_zeros
from tomfisher.runtime.freed import allocate, empty_shell, free, is_freed, is_streamed, refuse_calls
from tomfisher.runtime.structure import owners_of
from tomfisher.runtime.torch_state import plain_torch

__all__ = ["OpenedModel", "is_streamed", "load_opened", "open_model"]


class OpenedModel:
    """A model that is read from its files part by part, bit for bit what `load_model` makes of them.

    Every parameter is a tensor on the CPU with its shape and dtype. Its memory is given back until `load` reads its
    numbers, into the same tensor: parameters stay the same objects, and an autograd graph that holds one can be walked
    back after it was freed and loaded again. Whoever reads a freed parameter reads memory that is not there: modules
    refuse to be called then, and public functions of tomfisher refuse the model. Buffers hold their values from the
    start.

    Args:
        place: where the model is read from.
        model: as `assemble` made it inside `headers_only`.
        plan: how each of its tensors is made.
        loading: what is worth recording about the load.
    """

    def __init__(self, place: Place, model: Any, plan: Plan, loading: dict[str, Any]) -> None:
        self.model = model
        self.layers = decoder_layers(model, place.source)
        self._place, self._checkpoint, self._recipes, self._loading = (
            place,
            plan.checkpoint,
            plan.recipes,
            loading,
        )
        self._parameters = dict(model.named_parameters())
        self._canonical = _canonical_names(model)
        self._recipe_of = _recipe_of(model, plan, self._canonical)
        self._rewritten = {self._canonical[name] for name in plan.rewritten}
        self._heads: dict[str, bytes] = {}
        self._zero: list[str] = []
        self._ahead: tuple[frozenset[str], Future[None]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._fill_buffers()
        refuse_calls(model, [layer for _, layer in self.layers])

    @property
    def outer(self) -> list[str]:
        """Names of the parameters outside the decoder's layers, tied ones once: embeddings, norms, head."""
        inside = {id(p) for _, layer in self.layers for p in layer.parameters()}
        return [name for name, p in self._parameters.items() if id(p) not in inside]

    @property
    def bytes_read(self) -> int:
        """Bytes read from the files so far, headers included."""
        return self._checkpoint.bytes_read

    @property
    def file_bytes(self) -> int:
        """Bytes of the files, of which tensors that the model has no use for are never read."""
        return self._checkpoint.file_bytes

    @property
    def traffic(self) -> dict[str, int]:
        """What was read of how much, as a result records it."""
        return {"bytes_read": self.bytes_read, "file_bytes": self.file_bytes}

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, with `pad_token` set.

        Raises:
            ValueError: there is none; see `read_tokenizer`.
        """
        tokenizer = read_tokenizer(self._place)
        set_pad_token(tokenizer, self._place.source)
        return tokenizer

    @plain_torch()
    def load(self, names: Iterable[str]) -> None:
        """Read parameters into memory; what is there already stays as it is.

        Args:
            names: of parameters, in `model.named_parameters()`; any of the names of a tied one.

        Raises:
            ValueError: no such parameter; or the files are gone or are not what they were.
        """
        wanted = self._known(names)
        if self._ahead is not None and not wanted.isdisjoint(self._ahead[0]):
            self._take_ahead()
        self._read([name for name in wanted if is_freed(self._parameters[name])])

    def free(self, names: Iterable[str]) -> None:
        """Give the memory of parameters back; what is freed already stays so.

        Args:
            names: as for `load`.

        Raises:
            ValueError: no such parameter.
        """
        wanted = self._known(names)
        if self._ahead is not None and not wanted.isdisjoint(self._ahead[0]):
            self._take_ahead()
        for name in wanted:
            free(self._parameters[name])

    def prefetch(self, names: Iterable[str]) -> None:
        """Begin to read parameters in a thread; the next `load` of one of them waits for all and raises what failed.

        One set is read at a time: a set that is still being read is waited for first.

        Args:
            names: as for `load`.

        Raises:
            ValueError: no such parameter; or reading the set before failed.
        """
        wanted = self._known(names)
        if self._ahead is not None:
            self._take_ahead()
        if missing := [name for name in wanted if is_freed(self._parameters[name])]:
            self._ahead = frozenset(missing), self._reader.submit(self._read, missing)

    @contextlib.contextmanager
    def loaded(self, names: Iterable[str]) -> Iterator[None]:
        """Parameters in memory for the block; those that were there before stay there after it.

        Args:
            names: as for `load`.

        Raises:
            ValueError: as for `load`.
        """
        wanted = self._known(names)
        here = {name for name in wanted if self._is_here(name)}
        self.load(wanted)
        try:
            yield
        finally:
            self.free(wanted - here)

    def identity(self) -> dict[str, Any]:
        """What a result records about the model: as `LoadedModel.identity`, and its files.

        Returns:
            `files` (name, bytes, SHA-256 of the header of each), `headers_sha256` of all of these, and the keys of
            `LoadedModel.identity`. Two of them are None until every parameter was read once: `weights_sha256`, and
            `content_sha256` of check sums over all that was read.
        """
        whole = self._heads.keys() >= self._parameters.keys()
        files = self._checkpoint.facts()
        stored = {name for recipe in self._recipes.values() for name, _ in recipe.sources}
        identity = describe_source(self.model, self._place.source) | {
            "weights_sha256": fingerprint(self.model, self._heads) if whole else None,
            "content_sha256": self._checkpoint.content(stored),
            "headers_sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "files": files,
        }
        revision = self._place.options.get("revision")
        identity["revision"] = identity["revision"] or hub.commit_of(self._place.location, revision)
        zero = [name for name in self._parameters if name in self._zero]
        loading = self._loading | ({"zero": {"number": len(zero), "first": zero[:8]}} if zero else {})
        return identity | ({"loading": loading} if loading else {})

    def _known(self, names: Iterable[str]) -> set[str]:
        names = [names] if isinstance(names, str) else list(names)
        if unknown := [name for name in names if name not in self._canonical]:
            raise ValueError(
                f"{self._place.source!r} has no parameter {unknown[0]!r}. Names are those of model.named_parameters()."
            )
        return {self._canonical[name] for name in names}

    def _is_here(self, name: str) -> bool:
        ahead = self._ahead is not None and name in self._ahead[0]
        return not ahead and not is_freed(self._parameters[name])

    def _take_ahead(self) -> None:
        assert self._ahead is not None
        (_, reading), self._ahead = self._ahead, None
        reading.result()

    def _read(self, names: list[str]) -> None:
        """Fill parameters that are freed; all of them, or none if one fails."""
        recipes = {id(recipe): recipe for recipe in (self._recipe_of[name] for name in names)}
        try:
            with torch.no_grad():
                for recipe in recipes.values():
                    self._follow(recipe, set(names))
        except BaseException:
            for name in names:
                free(self._parameters[name])
            raise

    def _follow(self, recipe: Recipe, names: set[str]) -> None:
        first = self._canonical[recipe.first]
        parameter = self._parameters[first]
        if recipe.converter is None and parameter.is_contiguous():
            span = self._checkpoint.spans[recipe.sources[0][0]]
            if span.dtype == parameter.dtype and span.shape == parameter.shape:
                self._checkpoint.read(recipe.sources[0][0], into=allocate(parameter))
                self._finish(first)
                return
        for made, value in recipe.make(self._checkpoint, self.model).items():
            name = self._canonical.get(made)
            if name in names:
                allocate(self._parameters[name]).copy_(value)
                self._finish(name)

    def _finish(self, name: str) -> None:
        if name in self._rewritten:
            write_again(self.model, self._parameters[name])
        if name not in self._heads:
            self._heads[name] = head_of(self._parameters[name])
            if is_zero_matrix(self._parameters[name]):
                self._zero.append(name)
                warn_of_zeros([name], self._place.source)

    def _fill_buffers(self) -> None:
        """Read the persistent buffers, which are small and stay."""
        buffers = dict(self.model.named_buffers())
        recipes = {id(self._recipes[name]): self._recipes[name] for name in buffers if name in self._recipes}
        for recipe in recipes.values():
            for name, value in recipe.make(self._checkpoint, self.model).items():
                if name in buffers:
                    buffers[name].copy_(value)


@plain_torch()
def open_model(
    path: str,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> OpenedModel:
    """Open a causal language model: everything but the numbers of its parameters, which are read part by part.

    Args:
        path: a local folder, a hub id, a `.gguf` file or a built-in name, as for `load_model`; its weights have to be
            in safetensors files, or in a GGUF file, of which a dense copy is made once.
        dtype: None or "auto" as it was saved, or as for `load_model`.
        trust_remote_code: as for `load_model`.
        revision: as for `load_model`.

    Raises:
        ValueError: as for `load_model`; the weights are quantised or pickled, or belong to an adapter; files are
            missing, or an index names what they do not hold; the decoder's layers are not one list.
        ModuleNotFoundError: a package that this source needs is missing.
    """
    place = find_place(path, trust_remote_code, revision)
    folder = adapter_folder(place)
    if folder is not None and adapter_in(folder, place.source) is not None:
        raise ValueError(
            f"Model {path!r} is an adapter, which cannot be opened layer by layer. Merge it into its model first: "
            "tomfisher.models.load_model(...).model.save_pretrained(folder)."
        )
    check_kind(place)
    as_saved = dtype in (None, "auto", "checkpoint")
    precision = "auto" if as_saved else resolve_dtype(dtype or "auto", torch.device("cpu"))
    with headers_only() as plans:
        model, info, loading = assemble(place, precision)
    _materialise(model, plans[-1])
    loading |= check_assembled(model, info, path)
    if (method := plans[-1].dequantised) is not None:
        loading["dequantised"] = method
    return OpenedModel(place, model.eval(), plans[-1], loading | recorded(place.location))


def load_opened(
    source: str,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> LoadedModel:
    """`open_model` with the tokenizer and an identity, as `load_model` gives them.

    Args:
        source: as for `open_model`, like the others.
        dtype: as it was saved, or the name of one.
        trust_remote_code: let transformers run code that comes with the model.
        revision: hub branch, tag or commit.
    """
    opened = open_model(source, dtype, trust_remote_code, revision)
    return LoadedModel(opened.model, opened.tokenizer, source, opened.identity(), opened)


def _materialise(model: nn.Module, plan: Plan) -> None:
    """Replace parameters on meta by freed ones on the CPU, and buffers that will be read by empty ones.

    What no file holds stays on meta; `check_assembled` names it.
    """
    for owners in owners_of(model).values():
        names = [f"{owner.module_name}.{owner.attribute}".lstrip(".") for owner in owners]
        meta = owners[0].module._parameters[owners[0].attribute]
        assert meta is not None
        if recipe := next((plan.recipes[name] for name in names if name in plan.recipes), None):
            shell = empty_shell(meta, _offset(meta, recipe, plan))
            for owner in owners:
                owner.module._parameters[owner.attribute] = shell
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta and f"{prefix}.{key}".lstrip(".") in plan.recipes:
                module._buffers[key] = torch.empty_like(buffer, device="cpu")


def _offset(meta: Tensor, recipe: Recipe, plan: Plan) -> int:
    """Entries by which a parameter begins behind a multiple of 64 bytes when its file is mapped into memory.

    `from_pretrained` leaves weights there that need no conversion, and the last bit of a product may depend on it.
    """
    span = plan.checkpoint.spans[recipe.sources[0][0]]
    entries, rest = divmod(span.offset % 64, meta.itemsize)
    return entries if recipe.converter is None and span.dtype == meta.dtype and not rest else 0


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter to the one that `named_parameters` gives it."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _recipe_of(model: nn.Module, plan: Plan, canonical: dict[str, str]) -> dict[str, Recipe]:
    """How each parameter is made; a tied one as any of its names in the files says."""
    recipes: dict[str, Recipe] = {}
    for name, recipe in plan.recipes.items():
        if name in canonical:
            recipes.setdefault(canonical[name], recipe)
    return recipes


def decoder_layers(model: Any, source: str) -> list[tuple[str, nn.Module]]:
    """The decoder's layers in order, by name: of several lists, the one as long as the config says and least deep.

    Encoders of other inputs lie deeper in the decoder than its own layers.

    Raises:
        ValueError: they are in no list, or in several that are alike.
    """
    lists = layer_lists(model)
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    long_enough = [name for name, layers in lists.items() if len(list(layers.children())) == depth]
    found = long_enough or list(lists)
    outermost = min((name.count(".") for name in found), default=0)
    found = [name for name in found if name.count(".") == outermost]
    if len(found) != 1:
        raise ValueError(
            f"Model {source!r} cannot be read layer by layer: its decoder's layers are in "
            f"{'no list' if not found else f'several lists ({first_of(found)})'}. Load it whole: load_model."
        )
    return [(f"{found[0]}.{key}", layer) for key, layer in lists[found[0]].named_children()]
