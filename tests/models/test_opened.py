"""Models whose weights stay in their files: the bits of `load_model`, parameters that stay themselves, bad input."""

from __future__ import annotations

import functools
import gc
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from census import inputs
from tiny_models import config_of, random_model, smallest_llama
from tomfisher.models import load_model
from tomfisher.models.opened import OpenedModel, is_streamed, open_model
from tomfisher.runtime.freed import is_freed

# ones with tied heads, fused experts that are stored one by one, Conv1D and a prefix, dtypes that are kept
KINDS = (
    *("llama-gqa", "llama-tied", "qwen3", "mixtral", "qwen3-moe", "gpt-oss"),
    *("gpt2", "gpt-neox", "mamba", "jamba", "gemma2", "dbrx"),
)
IDS = torch.arange(1, 12)[None]


def names(opened: OpenedModel) -> list[str]:
    return [name for name, _ in opened.model.named_parameters()]


def inside(opened: OpenedModel, layer: int) -> list[str]:
    prefix = opened.layers[layer][0]
    return [name for name in names(opened) if name.startswith(f"{prefix}.")]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_same(theirs: Iterable[tuple[str, Tensor]], ours: Iterable[tuple[str, Tensor]]) -> None:
    """Names, dtypes, strides and every bit."""
    expected, found = dict(theirs), dict(ours)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


@pytest.fixture
def folder(saved: Callable[..., Any]) -> Any:
    """A Llama in several files with an index."""
    return saved(smallest_llama(tie_word_embeddings=False), max_shard_size="6KB")


def shards(folder: Any) -> list[Path]:
    return sorted(folder.path.glob("model-*.safetensors"))


# What is read.


@pytest.mark.parametrize("dtype", ["checkpoint", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_load_model_makes(kind: str, dtype: str, saved: Callable[..., Any]) -> None:
    folder = saved(random_model(kind, noise=0.02), max_shard_size="30KB")
    assert len(shards(folder)) > 1
    expected = load_model(folder.name, dtype, "cpu")
    opened = open_model(folder.name, dtype)
    assert is_streamed(opened.model)
    assert_same(expected.model.named_buffers(), opened.model.named_buffers())
    opened.load(opened.outer)
    for layer in range(len(opened.layers)):
        opened.load(inside(opened, layer))
    assert not is_streamed(opened.model)
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())
    with torch.no_grad():
        theirs, ours = (m(input_ids=IDS, use_cache=False).logits for m in (expected.model, opened.model))
    assert torch.equal(theirs, ours)
    assert opened.model.config.to_dict() == expected.model.config.to_dict()
    identity = opened.identity()
    assert {key: identity[key] for key in expected.identity} == expected.identity


def test_experts_of_these_checkpoints_are_stored_one_by_one(saved: Callable[..., Any]) -> None:
    folder = saved(random_model("mixtral"))
    stored = load_file(folder.path / "model.safetensors")
    assert any(re.search(r"experts\.3\.w1", name) for name in stored)
    assert any(name.endswith("experts.gate_up_proj") for name in names(open_model(folder.name)))


def test_a_base_model_is_given_its_prefix(saved: Callable[..., Any], tmp_path: Path) -> None:
    folder = saved(smallest_llama(tie_word_embeddings=True))
    folder.edit_weights(lambda tensors: {n.removeprefix("model."): t for n, t in tensors.items()})
    expected, opened = load_model(folder.name, device="cpu"), open_model(folder.name, "fp32")
    opened.load(names(opened))
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())


def test_names_of_wrappers_are_taken_out(saved: Callable[..., Any]) -> None:
    folder = saved(smallest_llama())
    folder.edit_weights(lambda tensors: {f"_orig_mod.{n}": t for n, t in tensors.items()})
    opened = open_model(folder.name)
    opened.load(names(opened))
    expected = load_model(folder.name, device="cpu")
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())
    assert opened.identity()["loading"] == expected.identity["loading"] == {"stripped": ["_orig_mod"]}


def test_layers_and_what_is_outside(folder: Any) -> None:
    opened = open_model(folder.name)
    assert [name for name, _ in opened.layers] == ["model.layers.0", "model.layers.1"]
    assert opened.layers[1][1] is opened.model.model.layers[1]
    assert opened.outer == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert not opened.model.training
    assert opened.tokenizer.pad_token is not None


def test_a_tied_weight_has_two_names_and_is_read_once(saved: Callable[..., Any]) -> None:
    opened = open_model(saved(smallest_llama(tie_word_embeddings=True)).name)
    assert opened.outer == ["model.embed_tokens.weight", "model.norm.weight"]
    before = opened.bytes_read
    opened.load(["lm_head.weight"])
    assert not is_freed(opened.model.model.embed_tokens.weight)
    assert opened.model.lm_head.weight is opened.model.model.embed_tokens.weight
    opened.load(["model.embed_tokens.weight"])
    assert opened.bytes_read - before == opened.model.lm_head.weight.numel() * 4


def test_bytes_are_counted(folder: Any) -> None:
    opened = open_model(folder.name)
    assert opened.file_bytes == sum(file.stat().st_size for file in shards(folder))
    headers = opened.bytes_read
    assert headers == sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in shards(folder))
    for _ in range(2):
        opened.load(names(opened))
        opened.load(names(opened))
        opened.free(names(opened))
    assert opened.bytes_read == headers + 2 * (opened.file_bytes - headers)


def test_weights_begin_where_a_mapped_file_has_them(folder: Any) -> None:
    """The last bit of a product may depend on it."""
    expected, opened = load_model(folder.name, "checkpoint", "cpu"), open_model(folder.name)
    opened.load(names(opened))
    places = [[p.data_ptr() % 64 for p in model.parameters()] for model in (expected.model, opened.model)]
    assert places[0] == places[1]
    assert any(places[0])


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("git", "git.encoder.layer.3"),
        ("phi4_multimodal", "model.layers.3"),
        ("recurrent_gemma", "model.layers.3"),
    ],
)
def test_layers_are_those_of_the_text(kind: str, found: str, tmp_path: Path) -> None:
    inputs.small_model(kind).save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).layers[-1][0] == found


def test_what_a_model_writes_after_a_load_is_written(tmp_path: Path) -> None:
    """Youtu sets the padding token's row of its embedding to zero."""
    inputs.small_model("youtu").save_pretrained(tmp_path)
    expected: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    before = [parameter._version for parameter in opened.model.parameters()]
    opened.load(names(opened))
    assert_same(expected.named_parameters(), opened.model.named_parameters())
    assert not opened.model.model.embed_tokens.weight[0].any()
    assert [parameter._version for parameter in opened.model.parameters()] == before


def test_matrices_of_zeros_are_named_once_when_they_are_read(saved: Callable[..., Any]) -> None:
    folder = saved(smallest_llama())
    name = "model.layers.1.mlp.up_proj.weight"
    folder.edit_weights(lambda tensors: {**tensors, name: torch.zeros_like(tensors[name])})
    opened = open_model(folder.name)
    with pytest.warns(UserWarning, match=rf"1 weight matrices .* are all zero, {re.escape(name)}"):
        opened.load(names(opened))
    opened.free(names(opened))
    opened.load(names(opened))
    assert opened.identity()["loading"] == {"zero": {"number": 1, "first": [name]}}


def fp8(weight: Tensor) -> dict[str, Tensor]:
    """Codes and scales of blocks of 16 × 16."""
    rows, columns = weight.shape
    blocks = weight.float().view(rows // 16, 16, columns // 16, 16)
    scales = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
    return {"": codes, "_scale_inv": scales}


@pytest.mark.parametrize("dtype", ["checkpoint", "fp32"])
@pytest.mark.parametrize("kind", ["llama-gqa", "mixtral"])
def test_weights_in_eight_bits_become_numbers_as_they_are_read(
    kind: str, dtype: str, saved: Callable[..., Any]
) -> None:
    pytest.importorskip("accelerate")
    folder = saved(random_model(kind).to(torch.bfloat16))

    def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
        whole = weight.ndim == 2 and weight.shape[0] % 16 == weight.shape[1] % 16 == 0
        coded = fp8(weight) if "layers" in name and whole else {"": weight}
        return {f"{name}{suffix}": part for suffix, part in coded.items()}

    folder.edit_weights(
        lambda tensors: {k: v for name, t in tensors.items() for k, v in packed(name, t).items()}
    )
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
    folder.edit_config(quantization_config={**method, "modules_to_not_convert": ["lm_head"]})
    expected, opened = load_model(folder.name, dtype, "cpu"), open_model(folder.name, dtype)
    opened.load(names(opened))
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())
    assert {p.dtype for p in opened.model.parameters()} <= {torch.bfloat16, torch.float32}
    assert opened.identity()["loading"] == {"dequantised": "fp8"}


def test_weights_in_four_bits_become_numbers_as_they_are_read(saved: Callable[..., Any]) -> None:
    pytest.importorskip("accelerate")
    folder = saved(random_model(config_of("gpt-oss", intermediate_size=64)).to(torch.bfloat16))

    def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {name: weight}
        experts, inputs_, outputs = weight.shape
        blocks = torch.randint(256, (experts, outputs, inputs_ // 32, 16), dtype=torch.uint8)
        return {
            f"{name}_blocks": blocks,
            f"{name}_scales": torch.randint(120, 128, blocks.shape[:3], dtype=torch.uint8),
        }

    folder.edit_weights(
        lambda tensors: {k: v for name, t in tensors.items() for k, v in packed(name, t).items()}
    )
    folder.edit_config(quantization_config={"quant_method": "mxfp4"})
    expected, opened = load_model(folder.name, "checkpoint", "cpu"), open_model(folder.name)
    opened.load(names(opened))
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())
    assert opened.identity()["loading"]["dequantised"] == "mxfp4"


# Parameters stay themselves.


def test_a_graph_outlives_freed_weights(folder: Any) -> None:
    expected = load_model(folder.name, device="cpu").model
    opened = open_model(folder.name, "fp32")
    gradients = []
    for model in (expected, opened.model):
        opened.load(names(opened))
        x = model.get_input_embeddings()(IDS).detach().requires_grad_()
        logits = model(inputs_embeds=x, use_cache=False).logits
        before = {name: id(parameter) for name, parameter in model.named_parameters()}
        if model is opened.model:
            opened.free(names(opened))
            assert is_streamed(model)
            opened.load(names(opened))
        gradients.append(torch.autograd.grad(logits.square().sum(), x)[0])
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert torch.equal(*gradients)


def test_a_cast_weight_keeps_its_version_too(folder: Any) -> None:
    opened = open_model(folder.name, "bf16")
    before = [parameter._version for parameter in opened.model.parameters()]
    opened.load(names(opened))
    opened.free(names(opened))
    opened.load(names(opened))
    assert [parameter._version for parameter in opened.model.parameters()] == before


def test_loaded_gives_back_what_it_has_read(folder: Any) -> None:
    opened = open_model(folder.name)
    first, second = inside(opened, 0), inside(opened, 1)
    opened.load(first)
    with opened.loaded(first + second):
        assert not any(is_freed(opened.model.get_parameter(name)) for name in first + second)
    assert not any(is_freed(opened.model.get_parameter(name)) for name in first)
    assert all(is_freed(opened.model.get_parameter(name)) for name in second)


def test_what_is_loaded_is_not_read_again(folder: Any) -> None:
    opened = open_model(folder.name)
    opened.load(["lm_head.weight"])
    opened.model.lm_head.weight.data.fill_(3.0)
    opened.load(names(opened))
    assert bool((opened.model.lm_head.weight == 3).all())


def test_reading_ahead_gives_the_same(folder: Any) -> None:
    expected, opened = load_model(folder.name, device="cpu"), open_model(folder.name, "fp32")
    opened.prefetch(opened.outer)
    for layer in range(len(opened.layers)):
        opened.prefetch(inside(opened, layer))
        opened.load(inside(opened, layer)[:1])
        assert not any(is_freed(opened.model.get_parameter(name)) for name in inside(opened, layer))
    opened.load(names(opened))
    assert_same(expected.model.named_parameters(), opened.model.named_parameters())
    assert opened.bytes_read == opened.file_bytes


def test_what_is_read_ahead_can_be_freed(folder: Any) -> None:
    opened = open_model(folder.name)
    opened.prefetch(names(opened))
    opened.free(names(opened))
    assert all(is_freed(parameter) for parameter in opened.model.parameters())


def test_an_error_of_reading_ahead_is_raised_by_load(folder: Any) -> None:
    opened = open_model(folder.name)
    shards(folder)[-1].unlink()
    opened.prefetch(names(opened))
    with pytest.raises(ValueError, match="cannot be read any more: No such file"):
        opened.load(names(opened))
    assert all(is_freed(parameter) for parameter in opened.model.parameters())


def resident_bytes() -> int:
    """Pages of this process in memory, anonymous and of files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system does not say how much memory is used"
)
def test_memory_is_that_of_one_layer(saved: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    config = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
    }
    folder = saved(smallest_llama(**config), max_shard_size="10MB")
    opened = open_model(folder.name)
    layer = sum(p.numel() * 4 for p in opened.layers[0][1].parameters())
    gc.collect()
    start = resident_bytes()
    peak = 0
    for i in range(len(opened.layers)):
        with opened.loaded(inside(opened, i)):
            peak = max(peak, resident_bytes() - start)
    assert peak < 2 * layer < opened.file_bytes / 4


# Bad input.


def test_missing_files_are_named(folder: Any) -> None:
    gone = shards(folder)[1]
    gone.unlink()
    with pytest.raises(ValueError, match=rf"1 of \d+ files are missing, {re.escape(gone.name)}"):
        open_model(folder.name)


def test_an_index_that_names_what_is_not_there(folder: Any) -> None:
    index = folder.path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.0.mlp.lost.weight"] = shards(folder)[0].name
    index.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"names 1 tensors that its files do not hold, model\.layers\.0\.mlp\.lost"
    ):
        open_model(folder.name)


def change(folder: Any, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Edit the tensors of the last shard."""
    file = shards(folder)[-1]
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_weights_in_no_file_and_of_other_shapes(folder: Any) -> None:
    change(folder, lambda tensors: tensors.update({n: t[:-1].clone() for n, t in tensors.items()}))
    with pytest.raises(ValueError, match="have another shape there"):
        open_model(folder.name)
    name = next(iter(load_file(shards(folder)[-1])))
    index = folder.path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    change(folder, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ValueError, match=rf"not in its files, {re.escape(name)}"):
        open_model(folder.name)


def test_experts_that_do_not_fit_together(saved: Callable[..., Any]) -> None:
    folder = saved(random_model("mixtral"))
    folder.edit_weights(
        lambda tensors: {n: t[:-1].clone() if "experts.2.w1" in n else t for n, t in tensors.items()}
    )
    with pytest.raises(ValueError, match=r"not what the model's own layout can be made of, model\.layers"):
        open_model(folder.name)


def test_a_file_that_is_cut_off(folder: Any) -> None:
    with shards(folder)[0].open("r+b") as file:
        file.truncate(shards(folder)[0].stat().st_size - 8)
    with pytest.raises(ValueError, match="is damaged"):
        open_model(folder.name)


@pytest.mark.parametrize("kept", [False, True])
def test_files_altered_between_two_reads(folder: Any, kept: bool) -> None:
    opened = open_model(folder.name)
    opened.load(names(opened))
    opened.free(names(opened))
    file = shards(folder)[0]
    before = file.stat()
    with file.open("r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        handle.write(b"\x01\x02\x03\x04")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if kept else 1)))
    with pytest.raises(ValueError, match="holds other numbers" if kept else "was altered or replaced"):
        opened.load(names(opened))
    assert all(is_freed(parameter) for parameter in opened.model.parameters())


def test_pickles_are_refused(folder: Any) -> None:
    torch.save(smallest_llama().state_dict(), folder.path / "pytorch_model.bin")
    for file in folder.path.glob("model*.safetensors*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"in pytorch_model\.bin, .* Convert it to safetensors"):
        open_model(folder.name)


def test_weights_that_stay_packed_are_refused(folder: Any) -> None:
    pytest.importorskip("accelerate")
    folder.edit_config(quantization_config={"quant_method": "bitnet"})
    with pytest.raises(ValueError, match=r"are quantised \(bitnet\), and transformers keeps them packed"):
        open_model(folder.name)


def test_adapters_are_refused(folder: Any) -> None:
    (folder.path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    )
    save_file(
        {"base_model.model.model.norm.weight": torch.ones(16)}, folder.path / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match="is an adapter, which cannot be opened layer by layer"):
        open_model(folder.name)


def test_what_load_model_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        open_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="Did you mean"):
        open_model("smollm2-135")


def test_unknown_parameters_are_named(folder: Any) -> None:
    opened = open_model(folder.name)
    for call in (opened.load, opened.free, opened.prefetch):
        with pytest.raises(ValueError, match=r"no parameter 'model\.layers\.7"):
            call(["model.layers.7.mlp.up_proj.weight"])


# A freed model is never read.


def test_modules_without_weights_refuse_to_be_called(folder: Any) -> None:
    opened = open_model(folder.name)
    with pytest.raises(RuntimeError, match="Embedding was called while its weight is still in its file"):
        opened.model(input_ids=IDS)
    opened.load(opened.outer)
    with pytest.raises(
        RuntimeError, match=r"LlamaDecoderLayer was called while its self_attn\.q_proj\.weight"
    ):
        opened.model(input_ids=IDS)


def test_other_loads_read_their_weights_as_ever(folder: Any) -> None:
    open_model(folder.name)
    model: Any = tf.AutoModelForCausalLM.from_pretrained(folder.name)
    assert not is_streamed(model)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_freed_head_is_refused_whatever_computes_it(tmp_path: Path) -> None:
    model = random_model("llama-gqa")
    model.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    head: Any = opened.model.get_output_embeddings()
    head.forward = functools.partial(torch.nn.Linear.forward, head)  # as `by_onednn` replaces it
    with pytest.raises(RuntimeError, match="while its weight is still in its file"):
        head(torch.zeros(1, 1, head.in_features))
