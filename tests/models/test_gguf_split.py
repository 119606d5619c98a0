from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tomfisher.files import sha256_of_file
from tomfisher.models import gguf, load_model
from tomfisher.models.gguf_check import check_copy

writer_of = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

HIDDEN, INNER, LAYERS, HEADS, KEY_HEADS = 64, 128, 3, 4, 2
TOKENS = [*(chr(code) for code in range(97, 123)), "ab", "cd", "<|endoftext|>"]
IDS = torch.arange(3, 20)[None]


def tensors(seed=0, tied=False):
    draw = np.random.default_rng(seed)

    def random(*shape):
        return (draw.standard_normal(shape) * 0.2).astype(np.float32)

    found = {"token_embd.weight": random(len(TOKENS), HIDDEN), "output_norm.weight": 1 + random(HIDDEN)}
    for i in range(LAYERS):
        shapes = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
            "attn_v": (HIDDEN // HEADS * KEY_HEADS, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        found |= {f"blk.{i}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        found |= {f"blk.{i}.{name}.weight": 1 + random(HIDDEN) for name in ("attn_norm", "ffn_norm")}
    return found if tied else {**found, "output.weight": random(len(TOKENS), HIDDEN)}


def write(path, values, split=None, described=True, packed=None, name=None):
    """A llama GGUF file; `split` is number, count and tensors in all, `packed` a quantisation of the matrices."""
    w = writer_of.GGUFWriter(str(path), "llama")
    if described:
        w.add_context_length(128)
        w.add_embedding_length(HIDDEN)
        w.add_block_count(LAYERS)
        w.add_feed_forward_length(INNER)
        w.add_head_count(HEADS)
        w.add_head_count_kv(KEY_HEADS)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(1e4)
        w.add_rope_dimension_count(HIDDEN // HEADS)
        w.add_vocab_size(len(TOKENS))
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list(TOKENS)
        w.add_token_types([1] * (len(TOKENS) - 1) + [3])
        w.add_token_merges(["a b", "c d"])
        w.add_bos_token_id(len(TOKENS) - 1)
        w.add_eos_token_id(len(TOKENS) - 1)
    if name is not None:
        w.add_name(name)
    if split:
        w.add_uint16("split.no", split[0])
        w.add_uint16("split.count", split[1])
        w.add_int32("split.tensors.count", split[2])
    for name, value in values.items():
        if packed is not None and value.ndim == 2:
            w.add_tensor(name, writer_of.quants.quantize(value, packed), raw_dtype=packed)
        else:
            w.add_tensor(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def write_parts(folder, values, count=3, stem="m", **more):
    names = list(values)
    step = -(-len(names) // count)
    return [
        write(
            folder / f"{stem}-{i + 1:05d}-of-{count:05d}.gguf",
            {name: values[name] for name in names[i * step : (i + 1) * step]},
            split=(i, count, len(names)),
            described=i == 0,
            **more,
        )
        for i in range(count)
    ]


def logits(source):
    with torch.inference_mode():
        return load_model(str(source), dtype="fp32", device="cpu").model(input_ids=IDS).logits


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMFISHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def kept(cache):
    return [path.name for path in cache.iterdir()] if cache.is_dir() else []


@pytest.fixture
def unread(monkeypatch):
    """Transformers must not see the file: what it does not find there, it makes up."""
    monkeypatch.setattr(gguf, "_read_dense", lambda file: pytest.fail("transformers read it"))


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("packed", [None, writer_of.GGMLQuantizationType.Q8_0], ids=["f32", "q8_0"])
def test_any_part_of_a_split_file_stands_for_the_whole(tmp_path, cache, part, packed):
    whole = write(tmp_path / "whole.gguf", tensors(), packed=packed)
    parts = write_parts(tmp_path, tensors(), packed=packed)
    torch.testing.assert_close(logits(parts[part]), logits(whole), rtol=0, atol=0)
    assert len(kept(cache)) == 2
    recorded = load_model(str(parts[0]), device="cpu").identity["loading"]["gguf"]
    assert recorded == {file.name: sha256_of_file(file) for file in parts}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_split_file_that_lacks_a_part_is_refused(tmp_path, cache, unread, gone):
    parts = write_parts(tmp_path, tensors())
    parts[gone].unlink()
    with pytest.raises(ValueError, match=rf"{parts[gone].name} is not beside it"):
        load_model(str(parts[(gone + 1) % 3]))
    assert kept(cache) == []


def test_parts_of_different_files_are_refused(tmp_path, unread):
    parts = write_parts(tmp_path, tensors())
    shorter = {k: v for k, v in tensors().items() if "blk.2" not in k}
    (tmp_path / "other").mkdir()
    write_parts(tmp_path / "other", shorter)[2].replace(parts[2])
    with pytest.raises(ValueError, match="parts of different files"):
        load_model(str(parts[0]))
    parts = write_parts(tmp_path, tensors())
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ValueError, match="says that it is part 3 of 3"):
        load_model(str(parts[0]))


@pytest.mark.parametrize("name", ["second.gguf", "m-00002-of-00004.gguf", "m-00001-of-00003.gguf"])
def test_a_part_under_another_name_is_refused(tmp_path, unread, name):
    part = write_parts(tmp_path / ".", tensors())[1]
    part.replace(tmp_path / name)
    with pytest.raises(ValueError, match=r"is part 2 of 3|is part 1 of 3"):
        load_model(str(tmp_path / name))


def test_a_file_that_does_not_say_what_model_it_holds_is_refused(tmp_path, unread):
    few = {k: v for k, v in tensors().items() if "blk.2" in k}
    with pytest.raises(ValueError, match="does not say what model it holds"):
        load_model(str(write(tmp_path / "m.gguf", few, described=False)))


LACKING = ["token_embd.weight", "output_norm.weight", "blk.1.ffn_down.weight", "blk.2.attn_norm.weight"]


@pytest.mark.parametrize("name", LACKING)
def test_a_file_that_lacks_a_tensor_is_refused_every_time(tmp_path, cache, name):
    file = write(tmp_path / "m.gguf", {k: v for k, v in tensors().items() if k != name})
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of its .* weights are not in its files"):
            load_model(str(file))
    assert kept(cache) == []


def test_a_file_without_a_head_has_the_embedding_for_one(tmp_path):
    model = load_model(str(write(tmp_path / "m.gguf", tensors(tied=True)))).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "blk.0.attn_sinks.weight"])
def test_a_tensor_of_the_file_that_the_model_does_not_take_is_refused(tmp_path, cache, name):
    more = {**tensors(), name: np.random.default_rng(1).standard_normal((INNER, HIDDEN)).astype(np.float32)}
    with pytest.raises(ValueError, match=r"no place for|not what the file holds"):
        load_model(str(write(tmp_path / "m.gguf", more)))
    assert kept(cache) == []


def test_rotary_factors_are_refused_unless_they_change_nothing(tmp_path):
    ones = np.ones(HIDDEN // HEADS // 2, np.float32)
    plain = logits(write(tmp_path / "plain.gguf", tensors()))
    same = logits(write(tmp_path / "ones.gguf", {**tensors(), "rope_freqs.weight": ones}))
    torch.testing.assert_close(same, plain, rtol=0, atol=0)
    with pytest.raises(ValueError, match="scales its rotary frequencies"):
        load_model(str(write(tmp_path / "m.gguf", {**tensors(), "rope_freqs.weight": 8 * ones})))


def redraw(model):
    torch.nn.init.normal_(model.model.layers[1].mlp.up_proj.weight, std=0.2)


def forget(model):
    model.model.layers[0].self_attn.k_proj.weight.data.zero_()


def nudge(model):
    model.lm_head.weight.data[3, 3] += 1e-3


@pytest.mark.parametrize("spoil", [redraw, forget, nudge])
def test_a_copy_with_other_values_than_the_file_is_not_kept(tmp_path, cache, monkeypatch, spoil):
    read = gguf._read_dense

    def spoilt(file):
        model, info = read(file)
        spoil(model)
        return model, info

    monkeypatch.setattr(gguf, "_read_dense", spoilt)
    with pytest.raises(ValueError, match="is not what the file holds: 1 of its 30 tensors"):
        load_model(str(write(tmp_path / "m.gguf", tensors())))
    assert kept(cache) == []


def test_what_llama_cpp_stores_otherwise_is_recognised(tmp_path):
    draw = np.random.default_rng(0)

    def random(*shape):
        return draw.standard_normal(shape).astype(np.float32)

    query, norm, a_log, gates, experts = (
        random(8, 4),
        random(8),
        random(8, 2),
        random(3, 6, 4),
        random(3, 4, 6),
    )
    stored = {
        "blk.0.attn_q.weight": query.reshape(2, 2, 2, 4)
        .swapaxes(1, 2)
        .reshape(8, 4)
        .copy(),  # rows reordered
        "blk.0.attn_norm.weight": norm + 1,
        "blk.0.ssm_a": -np.exp(a_log),
        "blk.0.ffn_gate_exps.weight": gates,
        "blk.0.ffn_down_exps.weight": experts,
    }
    file = write(tmp_path / "m.gguf", stored)
    copy = {
        "q": torch.tensor(query),
        "norm": torch.tensor(norm + 1) - 1,
        "A_log": (-torch.tensor(stored["blk.0.ssm_a"])).log(),
        **{f"gate.{i}": torch.tensor(gates[i]) for i in range(3)},
        "down": torch.tensor(experts).transpose(1, 2).contiguous(),
    }
    (tmp_path / "copy").mkdir()
    save_file(copy, tmp_path / "copy/model.safetensors")
    check_copy([file], tmp_path / "copy")
    save_file({**copy, "gate.1": copy["gate.0"].clone()}, tmp_path / "copy/model.safetensors")
    with pytest.raises(ValueError, match="not what the file holds"):
        check_copy([file], tmp_path / "copy")


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "model.safetensors").write_bytes(data)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "cut weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights gone": lambda folder: (folder / "model.safetensors").unlink(),
    "another config": lambda folder: (folder / "config.json").write_text("{}"),
    "no record": lambda folder: (folder / gguf.RECORD).unlink(),
    "a record of another file": lambda folder: (folder / gguf.RECORD).write_text('{"gguf": {}, "files": {}}'),
    "a record that is no JSON": lambda folder: (folder / gguf.RECORD).write_text("{"),
    "a record of another form": lambda folder: (folder / gguf.RECORD).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_copy_is_made_again(tmp_path, cache, damage):
    file = write(tmp_path / "m.gguf", tensors())
    want = logits(file)
    (name,) = kept(cache)
    damage(cache / name)
    torch.testing.assert_close(logits(file), want, rtol=0, atol=0)
    assert kept(cache) == [name]


def test_an_undamaged_copy_needs_neither_package_nor_conversion(tmp_path, monkeypatch):
    file = write(tmp_path / "m.gguf", tensors())
    want = logits(file)
    monkeypatch.setattr(gguf, "_require", lambda *names: pytest.fail("asked for packages"))
    torch.testing.assert_close(logits(file), want, rtol=0, atol=0)


def test_files_of_one_name_have_a_copy_each(tmp_path, cache):
    sources = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        sources.append(write(tmp_path / str(seed) / "m.gguf", tensors(seed)))
    first, second = map(logits, sources)
    assert not torch.equal(first, second)
    assert len(kept(cache)) == 2
    torch.testing.assert_close(logits(sources[0]), first, rtol=0, atol=0)


def test_an_interrupted_conversion_leaves_nothing_that_is_taken_for_a_copy(tmp_path, cache, monkeypatch):
    file = write(tmp_path / "m.gguf", tensors())

    def interrupt(parts, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "check_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_model(str(file))
    assert kept(cache) == []
    logits(file)


def test_those_who_need_one_copy_at_once_wait_for_the_first(tmp_path, monkeypatch):
    file = write(tmp_path / "m.gguf", tensors())
    convert, made, folders = gguf._convert, [], []

    def counted(parts, folder):
        made.append(folder)
        convert(parts, folder)

    monkeypatch.setattr(gguf, "_convert", counted)
    threads = [threading.Thread(target=lambda: folders.append(gguf.dense_folder(file))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(folders) == 3
    assert len(set(folders)) == 1


def test_an_adapter_beside_the_file_is_no_part_of_it(tmp_path):
    file = write(tmp_path / "m.gguf", tensors())
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "nowhere", "peft_type": "LORA"}'
    )
    assert Path(load_model(str(file)).name) == file


def test_a_part_that_says_that_it_is_of_another_model_is_refused(tmp_path):
    first, *_ = write_parts(tmp_path, tensors(), name="one")
    logits(first)
    (tmp_path / "other").mkdir()
    second = write_parts(tmp_path / "other", tensors(1), name="two")[1]
    (tmp_path / second.name).write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"another model.*general\.name is 'two', not 'one'"):
        load_model(str(first))


def test_matrices_that_a_file_holds_as_zeros_are_said(tmp_path):
    values = tensors()
    values["blk.1.ffn_down.weight"] = np.zeros_like(values["blk.1.ffn_down.weight"])
    with pytest.warns(UserWarning, match=r"all zero, model\.layers\.1\.mlp\.down_proj\.weight"):
        loaded = load_model(str(write(tmp_path / "m.gguf", values)))
    assert loaded.identity["loading"]["zero"]["number"] == 1
