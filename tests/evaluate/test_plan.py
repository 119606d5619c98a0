"""Plans of shared beginnings: what is run, how often, and what every token sees; and who may pack rows."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomfisher.evaluate import ChoiceEvaluator
from tomfisher.evaluate.execute import (
    batch_arguments,
    can_pack,
    can_share,
    computes_as_made,
    execute,
    layout,
)
from tomfisher.evaluate.plan import Batch, Row, cost, plan_shared, plan_whole
from tomfisher.runtime import onednn
from tomfisher.runtime.batches import pad
from tomfisher.runtime.modes import measuring

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 24,  # fewer than a packed sequence has tokens
    "sliding_window": None,
    "pad_token_id": 0,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SPECIAL = {
    "gpt2": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "mixtral": {"num_local_experts": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
}


def build(kind, attention="sdpa", **changes):
    """A random model of an architecture, with weights so large that mistakes show."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SIZES, **SPECIAL.get(kind, {}), **changes})
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
    return model.eval()


def questions(context=4):
    """Three stories behind one context, two questions each, answers of one, two and four tokens."""
    generator = torch.Generator().manual_seed(1)

    def draw(n):
        return tuple(torch.randint(1, 53, (n,), generator=generator).tolist())

    start, rows = draw(context), []
    for story in (draw(5), draw(6), draw(5)):
        for question in (draw(3), draw(3)):
            prompt = start + story + question
            rows += [Row(prompt + draw(n), len(prompt) - 1) for n in (0, 1, 3)]
    return rows


def worst_logit(model, rows, plan, exact=None):
    """Largest difference of a plan's logits to those of whole rows run one by one, on another model or the same."""
    worst, device = 0.0, torch.device("cpu")
    with measuring(model):
        for batch, cache in execute(model, plan, rows, device):
            arguments = {"use_cache": False, **batch_arguments(model, batch, cache, device)}
            logits = model(input_ids=pad([pack.ids for pack in batch.packs], device), **arguments).logits
            for i, pack in enumerate(batch.packs):
                for r, path in pack.paths.items():
                    alone = (exact or model)(input_ids=torch.tensor([rows[r].ids]), use_cache=False).logits[0]
                    found = logits[i, list(path)].to(alone.dtype)
                    worst = max(worst, (found - alone[batch.past :]).abs().max().item())
    return worst


PACKING = (
    *(
        "cohere",
        "gemma",
        "glm",
        "glm4",
        "gpt2",
        "gpt_neox",
        "gptj",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo",
    ),
    *(
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    ),
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKING)
def test_every_architecture_that_packs_computes_the_rows_alone(kind, attention):
    model, rows = build(kind, attention), questions()
    assert can_pack(model)
    packed = plan_shared(rows, 100, pack=True)
    assert any(len(pack.paths) > 1 for batch in batches(packed) for pack in batch.packs)
    assert max(len(pack.ids) for batch in batches(packed) for pack in batch.packs) > 24
    assert worst_logit(model, rows, packed) < 2e-5


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 6}
UNUSUAL = {
    "gpt2 scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "qk-norm phi": ("phi", {"qk_layernorm": True}),
    "qk-norm cohere": ("cohere", {"use_qk_norm": True}),
    "clipped olmo": ("olmo", {"clip_qkv": 0.5}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "no rope": ("smollm3", {"no_rope_layers": [0, 1]}),
    "post-norm opt": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "mixtral loss": ("mixtral", {"output_router_logits": True}),
    "qwen2_moe loss": ("qwen2_moe", {"output_router_logits": True}),
    "qwen3_moe loss": ("qwen3_moe", {"output_router_logits": True}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_settings_compute_the_rows_alone(name):
    kind, settings = UNUSUAL[name]
    model, rows = build(kind, **settings), questions()
    assert can_pack(model)
    for batch_size in (5, 100):
        assert worst_logit(model, rows, plan_shared(rows, batch_size, pack=True)) < 2e-5


def test_bf16_packs_no_worse_than_it_runs_rows_alone():
    exact, rows = build("llama").double(), questions()
    model = build("llama").bfloat16()
    packed = worst_logit(model, rows, plan_shared(rows, 100, pack=True), exact)
    alone = worst_logit(model, rows, plan_whole(rows, 1), exact)
    assert 0 < packed < 2 * alone


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_packs_behind_a_cache_compute_the_rows_alone(kind):
    rows = questions(context=200)
    model = build(kind, max_position_embeddings=256, **({"n_positions": 256} if kind == "gpt2" else {}))
    plan = plan_shared(rows, 7, pack=True)
    assert not isinstance(plan[0], Batch)
    behind = [batch for batch in batches(plan) if batch.past]
    assert any(len(pack.paths) > 1 for batch in behind for pack in batch.packs)
    assert worst_logit(model, rows, plan) < 2e-5


def batches(plan):
    for part in plan:
        yield from [part] if isinstance(part, Batch) else batches(part.then)


def beginnings(rows, plan, before=None):
    """`(batch, ids in the cache row of each pack)` of every batch, from the definition of the plan alone."""
    for part in plan:
        cached = [before[p] if part.past else () for p in part.parents]
        if isinstance(part, Batch):
            yield part, cached
        else:
            own = [rows[r].ids[part.past : part.end] for r in part.nodes]
            yield from beginnings(rows, part.then, [a + b for a, b in zip(cached, own, strict=True)])


ids = st.lists(st.integers(1, 3), min_size=1, max_size=24).map(tuple)


@st.composite
def row_lists(draw):
    """Rows over three tokens, so that they share much, behind a common context or not."""
    context = (9,) * draw(st.sampled_from([0, 1, 7, 90]))
    rows = draw(st.lists(ids, min_size=1, max_size=40, unique=True))
    return [Row(context + row, draw(st.integers(0, len(context + row) - 1))) for row in rows]


@settings(max_examples=300, deadline=None)
@given(row_lists(), st.sampled_from([1, 2, 5, 32]))
def test_every_row_is_run_exactly_once_behind_its_own_beginning(rows, batch_size):
    steps, packed = (plan_shared(rows, batch_size, pack) for pack in (False, True))
    for plan in (plan_whole(rows, batch_size), steps, packed):
        seen = []
        for batch, cached in beginnings(rows, plan):
            assert len(batch.rows) <= batch_size
            for pack, before in zip(batch.packs, cached, strict=True):
                assert len(before) == batch.past
                for r, path in pack.paths.items():
                    assert before + tuple(pack.ids[i] for i in path) == rows[r].ids
                    assert rows[r].first >= batch.past
            seen += batch.rows
        assert sorted(seen) == list(range(len(rows)))
    assert cost(packed) <= cost(steps)
    assert all(len(pack.paths) == 1 for batch in batches(steps) for pack in batch.packs)


@settings(max_examples=200, deadline=None)
@given(row_lists())
def test_packed_tokens_see_their_beginning_alone_and_outputs_stand_first(rows):
    for batch in batches(plan_shared(rows, 32, pack=True)):
        positions, visible = layout(batch)
        length = max(len(pack.ids) for pack in batch.packs)
        assert positions.shape == (len(batch.packs), length)
        assert visible.shape == (len(batch.packs), 1, length, batch.past + length)
        for i, pack in enumerate(batch.packs):
            seen = {j: {j} for j in range(length)}
            for r, path in pack.paths.items():
                for k, j in enumerate(path):
                    seen[j] |= set(path[:k])
                    assert positions[i, j] == batch.past + k
                outputs = path[rows[r].first - batch.past :]
                if len(pack.paths) > 1:
                    needed = {j for q, p in pack.paths.items() for j in p[rows[q].first - batch.past :]}
                    assert max(outputs) < len(needed)
            for j in range(length):
                found = visible[i, 0, j].nonzero().flatten().tolist()
                assert found == [*range(batch.past), *(batch.past + k for k in sorted(seen[j]))]


def test_rows_that_share_nothing_are_not_packed():
    rows = [Row((n, *range(10, 30)), 20) for n in range(9)]
    plan = plan_shared(rows, 4, pack=True)
    assert plan == plan_whole(rows, 4) and [len(batch.packs) for batch in plan] == [4, 4, 1]


def test_packs_and_single_rows_are_in_different_forwards():
    """The outputs of packs stand first and those of rows last: together, logits of both ends would be computed."""
    shared = [Row((1,) * 30 + (2 + q, 3), 31) for q in range(4)]
    single = [Row((10 + n, *range(20, 50)), 30) for n in range(4)]
    plan = plan_shared(shared + single, 32, pack=True)
    kinds = [{len(pack.paths) == 1 for pack in batch.packs} for batch in batches(plan)]
    assert kinds == [{False}, {True}]


def test_a_long_dialogue_with_questions_after_every_turn_is_planned():
    context, rows = (), []
    for turn in range(600):
        context += (1000 + turn,) * 8
        rows += [Row((*context, q), len(context)) for q in (1, 2)]
    plan = plan_shared(rows, 32, pack=True)
    assert sorted(r for batch in batches(plan) for r in batch.rows) == list(range(len(rows)))
    assert cost(plan) < 0.5 * cost(plan_whole(rows, 32))


def test_a_long_common_beginning_is_run_once_and_packs_follow_it():
    context, stories = (7,) * 600, [(n, *range(10, 60)) for n in range(20)]
    rows = [Row(context + story + (60 + q,), 651) for story in stories for q in range(3)]
    (step,) = plan_shared(rows, 32, pack=True)
    assert (step.past, step.end, len(step.nodes)) == (0, 600, 1)
    assert all(isinstance(batch, Batch) and batch.past == 600 for batch in step.then)
    assert cost((step,)) < 0.5 * cost(plan_whole(rows, 32))


def test_who_packs(models):
    assert can_pack(models("llama"))
    for name in ("mpt", "mistral-window"):  # distances and windows count tokens by where they stand
        assert can_share(models(name)) and not can_pack(models(name))
    assert not can_pack(models("mamba"))
    foreign = copy.copy(models("llama"))
    foreign.__class__ = type("Foreign", (type(foreign),), {"__module__": "somebody.else"})
    assert not can_pack(foreign)


@pytest.mark.parametrize("kind", ["mistral", "mixtral", "phi3", "starcoder2", "qwen3_moe"])
def test_a_window_is_not_packed_whatever_the_layers_are_called(kind):
    model = build(kind, sliding_window=4, use_sliding_window=True, layer_types=["full_attention"] * 2)
    assert not can_pack(model)
    assert can_pack(build(kind, sliding_window=None))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotation_that_depends_on_the_length_is_not_cached(kind):
    longrope = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 12}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **(longrope if kind == "longrope" else {})}
    model = build("phi3" if kind == "longrope" else "llama", rope_parameters=rope)
    assert not can_share(model) and not can_pack(model)


def test_interventions_share_but_do_not_pack():
    from tomfisher.interventions import OffSink, intervene

    model = build("llama")
    with intervene(model, OffSink(0.5)):
        assert can_share(model) and computes_as_made(model) and not can_pack(model)
    assert can_pack(model)


def shift_first(module, args, output):
    """What interpretability does every day: change what stands at a position."""
    output = output.clone()
    output[:, 0] += 5
    return output


@contextlib.contextmanager
def meddled(model, how):
    """Inside, the MLP of a layer is changed at position 0, in one of the ways in which people do it."""
    layer = model.model.layers[0]
    mlp = layer.mlp
    if how == "hook":
        handle = mlp.register_forward_hook(shift_first)
    elif how == "hook of the model":
        handle = model.model.layers[0].register_forward_pre_hook(
            lambda m, args: (shift_first(m, (), args[0]),)
        )
    elif how == "hook of all modules":
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda m, args, output: shift_first(m, args, output) if m is mlp else None
        )
    elif how == "forward":
        mlp.forward = lambda x: shift_first(mlp, (), type(mlp).forward(mlp, x))
        handle = SimpleNamespace(remove=lambda: vars(mlp).pop("forward"))
    elif how == "module":
        wrapper = Wrapper(mlp)
        layer.mlp = wrapper
        handle = SimpleNamespace(remove=lambda: setattr(layer, "mlp", mlp))
    try:
        yield
    finally:
        handle.remove()


class Wrapper(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return shift_first(self, (), self.inner(x))


@pytest.mark.parametrize("how", ["hook", "hook of the model", "hook of all modules", "forward", "module"])
def test_what_counts_positions_is_run_whole_and_gives_what_single_rows_give(
    how, tokenizer, stories, fresh_model
):
    model = fresh_model("llama")
    evaluator = ChoiceEvaluator(tokenizer, stories)
    before = evaluator.score(model)
    with meddled(model, how):
        assert not can_pack(model) and not computes_as_made(model)
        found = evaluator.score(model)
        single = ChoiceEvaluator(tokenizer, stories, batch_size=1).score(model, share_prefix=False)
    assert not found.shared_prefix and not found.packed
    gaps = [
        abs(a - b)
        for x, y, z in zip(found.records, single.records, before.records, strict=True)
        for a, b in zip(x.logprobs, y.logprobs, strict=True)
    ]
    assert max(gaps) < 1e-4
    assert any(x.logprobs != y.logprobs for x, y in zip(found.records, before.records, strict=True))
    assert evaluator.score(model) == before and before.packed


def test_attention_of_somebodys_own_is_run_whole(tokenizer, stories, fresh_model):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    model = fresh_model("llama")
    AttentionInterface.register("of_my_own", lambda *args, **kwargs: sdpa_attention_forward(*args, **kwargs))
    before = ChoiceEvaluator(tokenizer, stories).score(model)
    model.set_attn_implementation("of_my_own")
    found = ChoiceEvaluator(tokenizer, stories).score(model)
    assert before.packed and not found.shared_prefix


def test_linear_layers_by_onednn_are_known(monkeypatch):
    monkeypatch.setattr(onednn, "outruns_mkl", lambda: True)
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    model = build("llama")
    with onednn.by_onednn(model):
        assert "forward" in vars(model.lm_head) and can_pack(model)


def test_what_accelerate_puts_in_is_known():
    model = build("llama")
    layer = model.model.layers[0]
    layer._hf_hook, layer.forward = object(), layer.forward
    assert computes_as_made(model) and can_pack(model)


def test_a_look_at_hidden_states_changes_nothing():
    model = build("llama")
    model(torch.tensor([[1, 2]]), output_hidden_states=True)  # transformers leaves hooks behind
    assert can_pack(model)


def test_the_mask_is_of_the_kind_the_attention_takes():
    rows = questions()
    batch = next(batches(plan_shared(rows, 100, pack=True)))
    visible = layout(batch)[1]
    for attention, dtype in (("sdpa", torch.bool), ("eager", torch.bfloat16)):
        model = SimpleNamespace(
            config=SimpleNamespace(_attn_implementation=attention),
            dtype=torch.bfloat16,
            forward=lambda input_ids, past_key_values: None,
        )
        cache = None if batch.past == 0 else object()
        mask = batch_arguments(model, batch, cache, torch.device("cpu"))["attention_mask"]
        assert mask.dtype == dtype
        assert torch.equal(mask if dtype == torch.bool else mask == 0, visible)
