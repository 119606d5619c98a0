"""The rules are asked of the model: a broken one is worked around with the right numbers, or refused by name."""

from __future__ import annotations

import random

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from torch.nn.functional import cross_entropy

import tomfisher
from tokenizer_kinds import word_level
from tomfisher.runtime import rules
from tomfisher.runtime.rules import EQUAL, PADDED, SINGLE, check_rules, check_run, remembered
from tomfisher.sample import Sample
from tomfisher.tasks.story import Story

WORDS = [f"w{i}" for i in range(60)]
TINY = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
LLAMA = {**TINY, **HEADS, "max_position_embeddings": 128}
LENGTHS = (40, 10, 12, 30, 9, 12, 10)


def llama(**settings):
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**LLAMA, **settings}))


def within(layer):
    """A Llama with a module of ours between its last norm and its head."""

    def build():
        model = llama()
        model.model.norm = nn.Sequential(model.model.norm, layer())
        return model

    return build


class Statistics(nn.Module):
    """Normalises by the statistics of the whole batch, of later tokens as well."""

    def forward(self, x):
        return (x - x.mean((0, 1))) / x.std((0, 1))


class Mean(nn.Module):
    """Adds the mean over the rows, position by position."""

    def forward(self, x):
        return x + x.mean(0)


class Capacity(nn.Module):
    """One expert takes as many tokens of a forward as there is room for; the rest pass by."""

    def __init__(self, room=0.6):
        super().__init__()
        self.room = room
        self.expert = nn.Linear(16, 16)

    def forward(self, x):
        tokens = x.reshape(-1, x.shape[-1])
        taken = (tokens[:, 0] > -1).cumsum(0) <= len(tokens) * self.room
        return (tokens + 3 * self.expert(tokens) * taken[:, None]).view_as(x)


class Length(nn.Module):
    """Scales by the length of the row, padding counted."""

    def forward(self, x):
        return x * (x.shape[1] / 20) ** 0.5


class Noise(nn.Module):
    """A dropout that nobody can switch off."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.05, training=True)


class OwnWeight(nn.Module):
    """Keeps a running mean in a weight, where autograd and version counters do not see it."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(16))

    def forward(self, x):
        self.mean.data.lerp_(x.mean((0, 1)), 0.1)
        return x


class OwnBuffer(OwnWeight):
    def __init__(self):
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(16))


class Longest(nn.Module):
    """Keeps the length of the longest text so far."""

    def __init__(self):
        super().__init__()
        self.longest = 0

    def forward(self, x):
        self.longest = max(self.longest, x.shape[1])
        return x * self.longest


class Ahead(nn.Module):
    """Sees the next token, as a convolution that is off by one does."""

    def forward(self, x):
        return x + torch.nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


class Late(nn.Module):
    """Breaks a rule only in texts longer than the questions that no length decides."""

    def __init__(self, fault, start=30):
        super().__init__()
        self.fault, self.start = fault, start

    def forward(self, x):
        if x.shape[1] <= self.start:
            return x
        return torch.cat([x[:, : self.start], self.fault(x[:, self.start :])], 1)


def late(fault):
    return within(lambda: Late(fault))


def every_fourth_ahead(x):
    """Position 34, 38, ... see the next one, never the last."""
    out = x.clone()
    out[:, 2:-1:4] += x[:, 3::4][:, : out[:, 2:-1:4].shape[1]]
    return out


class Blocks(nn.Module):
    """Adds the mean of the block of 8 that a position is in, in long texts."""

    def forward(self, x):
        if x.shape[1] < 36:
            return x
        blocks = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 8)).unflatten(1, (-1, 8)).mean(2)
        return x + blocks.repeat_interleave(8, 1)[:, : x.shape[1]]


class Swap(nn.Module):
    """Turns round the rows between the first and the last of a batch."""

    def forward(self, x):
        return torch.cat([x[:1], x[1:-1].flip(0), x[-1:]]) if len(x) > 3 else x


class Shifted(tf.LlamaForCausalLM):
    """Row t predicts token t itself."""

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, use_cache=False)
        out.logits = nn.functional.pad(out.logits[:, :-1], (0, 0, 1, 0))
        return out


class KeepsANumber(tf.LlamaForCausalLM):
    """Takes logits_to_keep as a number only."""

    def forward(self, input_ids=None, logits_to_keep=0, **kwargs):
        out = super().forward(input_ids=input_ids, use_cache=False)
        if logits_to_keep > 0:
            out.logits = out.logits[:, -logits_to_keep:]
        return out


class FewerRows(tf.LlamaForCausalLM):
    """Gives the logits of the tokens that have a next one."""

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, use_cache=False)
        out.logits = out.logits[:, :-1]
        return out


class RowsBehind(tf.LlamaForCausalLM):
    """Gives rows behind those of the tokens."""

    def forward(self, input_ids=None, **kwargs):
        out = super().forward(input_ids=input_ids, use_cache=False)
        out.logits = nn.functional.pad(out.logits, (0, 0, 0, 2))
        return out


def phi3_longrope():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2}
    rope |= {"long_factor": [2.0, 8.0], "original_max_position_embeddings": 16, "factor": 8.0}
    settings = {**LLAMA, "original_max_position_embeddings": 16, "rope_parameters": rope, "pad_token_id": 0}
    return tf.Phi3ForCausalLM(tf.Phi3Config(**settings))


def dynamic_ntk():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = llama(max_position_embeddings=16, rope_parameters=rope)
    model.config.max_position_embeddings = 128  # the frequencies are scaled from 16 on, texts may be longer
    model.model.rotary_emb.config = llama(max_position_embeddings=16, rope_parameters=rope).config
    return model


def prompt_tuning():
    return peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


def prefix_tuning():
    return peft.get_peft_model(llama(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


def bert():
    settings = {**TINY, "num_attention_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 128}
    return tf.BertLMHeadModel(tf.BertConfig(**settings))


RIGHT = {
    "plain": (llama, PADDED),
    "prompt tuning": (prompt_tuning, PADDED),
    "prefix tuning": (prefix_tuning, PADDED),
    "longrope": (phi3_longrope, EQUAL),
    "dynamic ntk": (dynamic_ntk, EQUAL),
    "length": (within(Length), EQUAL),
    "capacity": (within(Capacity), SINGLE),
    "mean": (within(Mean), SINGLE),
    "swap": (within(Swap), SINGLE),
    "number of logits": (lambda: KeepsANumber(tf.LlamaConfig(**LLAMA)), PADDED),
}
REFUSED = {
    "statistics": (within(Statistics), "causal"),
    "bert": (bert, "causal"),
    "ahead": (within(Ahead), "causal"),
    "noise": (within(Noise), "the same call gives the same numbers"),
    "late noise": (
        late(lambda x: x + torch.randn_like(x)),
        "the same call gives the same numbers",
    ),
    "late ahead": (late(every_fourth_ahead), "causal"),
    "late blocks": (within(Blocks), "causal"),
    "shifted": (lambda: Shifted(tf.LlamaConfig(**LLAMA)), "rows"),
    "longest": (within(Longest), "the same call gives the same numbers"),
    "own weight": (within(OwnWeight), "a forward leaves the weights as they are"),
    "own buffer": (within(OwnBuffer), "a forward leaves the weights as they are"),
    "fewer rows": (lambda: FewerRows(tf.LlamaConfig(**LLAMA)), "rows"),
    "rows behind": (lambda: RowsBehind(tf.LlamaConfig(**LLAMA)), "rows"),
}


def texts(seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(4, 64) for _ in range(n)] for n in LENGTHS]


@pytest.fixture(scope="module")
def tokenizer():
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return word_level(["<pad>", "<s>", "</s>", "<unk>", *WORDS], **names)


def in_words(ids):
    return " ".join(WORDS[i - 4] for i in ids)


def stories():
    draw, found = random.Random(1), []
    for i, ids in enumerate(texts()):
        choices = (*draw.sample(WORDS, 2), f"{draw.choice(WORDS)} {draw.choice(WORDS)}")
        found.append(Story(in_words(ids), "", choices, 0, "c", 1, f"q{i}", "{story}"))
    return found


def made(build):
    torch.manual_seed(0)
    return build().eval()


def alone(model, ids):
    """Log-probabilities `[T, V]` of the tokens' own rows, of one text in a forward of its own, as just loaded."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return logits[-len(ids) :].double().log_softmax(-1)


@pytest.mark.parametrize("kind", RIGHT)
def test_the_way_that_is_right_is_found_and_recorded(kind):
    build, batches = RIGHT[kind]
    found = check_rules(made(build), texts(), rows=6)
    assert found.batches == batches and found.repeats
    assert found.rows.offset == (5 if kind == "prompt tuning" else 0)
    assert (found.reason != "") == (batches != PADDED)
    said = found.to_dict()
    assert said["lengths"] == [9, 40] and said["batches"] == batches
    assert said["differences"][batches if batches != SINGLE else "causal"] <= found.tolerance


@pytest.mark.parametrize("share", ["auto", False])
@pytest.mark.parametrize("kind", RIGHT)
def test_answers_are_those_of_single_rows(kind, share, tokenizer):
    build, batches = RIGHT[kind]
    model, questions = made(build), stories()
    found = tomfisher.evaluate.ChoiceEvaluator(tokenizer, questions, 4).score(model, share, progress=False)
    for story, record in zip(questions, found.records, strict=True):
        prompt = tokenizer(story.prompt)["input_ids"]
        for choice, logprob in zip(story.choices, record.logprobs, strict=True):
            answer = tokenizer(choice)["input_ids"]
            with torch.no_grad():
                rows = alone(model, (prompt + answer)[:-1])[len(prompt) - 1 :]
            assert logprob == pytest.approx(rows[range(len(answer)), answer].sum().item(), abs=2e-4)
    assert found.rules["batches"] == batches and found.packed == (share == "auto" and kind == "plain")


@pytest.mark.parametrize("kind", RIGHT)
def test_perplexity_is_that_of_single_windows(kind, tokenizer):
    build, batches = RIGHT[kind]
    model, documents = made(build), texts()
    found = tomfisher.evaluate.perplexity(model, tokenizer, list(map(in_words, documents)), progress=False)
    nll = 0.0
    with torch.no_grad():
        for ids in documents:
            nll -= alone(model, ids[:-1])[range(len(ids) - 1), ids[1:]].sum().item()
    assert found.nll == pytest.approx(nll, abs=2e-3)
    assert found.rules["batches"] == batches


@pytest.mark.parametrize("kind", RIGHT)
def test_the_fisher_is_that_of_single_samples(kind):
    build, batches = RIGHT[kind]
    model = made(build)
    samples = [Sample(torch.tensor(ids), torch.tensor(ids)) for ids in texts()]
    F = tomfisher.fisher_diagonal(model, samples, params="*.0.*proj.weight", progress=False)
    assert F.metadata["rules"]["batches"] == batches
    parameters = {name: model.get_parameter(name).requires_grad_(True) for name in F}
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for sample in samples:
        ids = sample.input_ids
        loss = cross_entropy(alone(model, ids.tolist())[:-1], ids[1:])
        for name, g in zip(F, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            expected[name] += g**2
    for name in F:
        assert (F[name] - expected[name]).abs().max() <= 2e-4 * expected[name].abs().max(), (
            name,
            F.methods[name],
        )


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_written_is_what_single_rows_say(kind, tokenizer):
    build, batches = RIGHT[kind]
    model, questions = made(build), stories()[:4]
    found = tomfisher.evaluate.score(
        model, tokenizer, questions, "generate", batch_size=4, max_new_tokens=4, progress=False
    )
    for story, record in zip(questions, found.records, strict=True):
        ids = tokenizer(story.prompt)["input_ids"]
        with torch.no_grad():
            first = int(alone(model, ids)[-1].argmax())
        assert record.predicted == tokenizer.decode(first).strip("</>")
    assert found.rules["batches"] == batches
    if "tuning" not in kind and kind != "number of logits":
        assert found.rules["cached"] == (batches == PADDED)  # keys of another length are no keys of this one


@pytest.mark.parametrize("kind", ["plain", "longrope", "dynamic ntk", "length", "capacity"])
def test_the_analysis_is_that_of_single_prompts(kind):
    build, batches = RIGHT[kind]
    model, prompts = made(build), texts()
    found = tomfisher.analysis.analyze(model, prompts, progress=False)
    assert found.rules["batches"] == batches
    each = [tomfisher.analysis.attention_sinks(model, [p], progress=False) for p in prompts]
    weights = torch.tensor([len(p) - 1.0 for p in prompts])
    for layer, together in enumerate(found.results["sinks"].layers):
        masses = torch.stack([one.layers[layer].first_mass for one in each])
        mean = (masses * weights[:, None]).sum(0) / weights.sum()
        assert torch.allclose(together.first_mass.double(), mean.double(), atol=1e-5)


@pytest.mark.parametrize("build", [prompt_tuning, prefix_tuning])
def test_virtual_tokens_are_not_analysed(build):
    found = tomfisher.analysis.analyze(made(build), texts(), progress=False)
    assert not found.results and found.unavailable.keys() == {"rope", "sinks"}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_step_of_training_is_that_of_single_samples(kind):
    build, _ = RIGHT[kind]
    model = made(build)
    name = next(n for n, _ in model.named_parameters() if n.endswith("layers.0.mlp.down_proj.weight"))
    samples = [Sample(torch.tensor(ids), torch.tensor(ids)) for ids in texts()]
    with torch.no_grad():
        loss = sum(
            cross_entropy(alone(model, s.input_ids.tolist())[:-1], s.input_ids[1:]).item() for s in samples
        )
    mask = tomfisher.SparseMask({name: torch.arange(5)}, {name: (16, 24)})
    with tomfisher.finetune.finetune_masked(
        model, mask, samples, steps=1, batch_size=len(samples), progress=False
    ) as tuned:
        assert tuned.losses[0] == pytest.approx(loss / len(samples), abs=2e-5)
        assert tomfisher.finetune.training.mean_loss(model, samples) == pytest.approx(loss / 7, abs=0.5)


RUNS = {
    "fisher": lambda model, tokenizer: tomfisher.fisher_diagonal(
        model, [Sample(torch.tensor(ids), torch.tensor(ids)) for ids in texts()], params="all", progress=False
    ),
    "choice": lambda model, tokenizer: tomfisher.evaluate.score(model, tokenizer, stories(), progress=False),
    "perplexity": lambda model, tokenizer: tomfisher.evaluate.perplexity(
        model, tokenizer, list(map(in_words, texts())), progress=False
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_rule_is_named(kind, run, tokenizer):
    build, rule = REFUSED[kind]
    with pytest.raises(ValueError, match=f'breaks the rule "{rule}'):
        RUNS[run](made(build), tokenizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_breaks_no_rule(family, dtype, tiny_config):
    for spread in (0.02, 0.3):
        config = tiny_config(family)
        config.initializer_range = spread
        model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
        found = check_rules(model, [[t % 53 for t in ids] for ids in texts()], rows=8)
        assert found.batches == PADDED and found.repeats and found.rounding > 0, found


class Gated(nn.Module):
    """Mixes the rows of a batch once a gate of one kind or another is open."""

    scale = 0.0

    def __init__(self):
        super().__init__()
        self.leak, self.gate = 0.0, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + (self.leak + self.gate + self.scale) * x.mean(0)


GATES = {
    "attribute": lambda layer: setattr(layer, "leak", 1.0),
    "weight": lambda layer: layer.gate.data.fill_(1.0),
    "class": lambda layer: setattr(type(layer), "scale", 1.0),
}


@pytest.mark.parametrize("gate", GATES)
def test_every_call_asks_anew(gate, tokenizer, monkeypatch):
    monkeypatch.setattr(Gated, "scale", 0.0)
    model = made(within(Gated))
    evaluator = tomfisher.evaluate.ChoiceEvaluator(tokenizer, stories(), 4)
    assert evaluator.score(model, progress=False).rules["batches"] == PADDED
    GATES[gate](model.model.norm[1])
    assert evaluator.score(model, progress=False).rules["batches"] == SINGLE


def test_a_sweep_asks_once_and_another_computation_anew():
    model, calls = made(llama), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with remembered():
        first = check_rules(model, texts(), rows=4)
        asked = len(calls)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0] = 0  # as a mask does
        with remembered():  # a study within a study
            assert check_rules(model, texts()[::-1], rows=4) is first
        assert len(calls) == asked
        assert check_rules(model, texts()[2:4], rows=4) is not first  # what holds may depend on the tokens
        assert check_rules(model, [*texts(), [5] * 60], rows=4) is not first
        handle = model.model.norm.register_forward_hook(lambda m, a, out: out + out.mean(0))
        assert check_rules(model, texts(), rows=4).batches == SINGLE
        handle.remove()
        assert check_rules(model, texts(), rows=4) is first
    assert check_rules(model, texts(), rows=4) is not first


def test_the_texts_of_a_run_are_asked_about_at_once():
    model, calls = made(llama), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    with remembered():
        most = 4 * max(map(len, texts()))
        check_run(model, texts(), tokens=most)
        asked = len(calls)
        for part in (texts()[2:4], texts()[:1], texts()):
            assert check_rules(model, part, rows=4) is check_rules(model, texts(), tokens=most)
        assert len(calls) == asked
        check_rules(model, [*texts()[:1], [5] * 60], rows=4)
        longer = len(calls)
        assert longer > asked
        check_rules(model, texts(), rows=5)
        assert len(calls) > longer
    asked = len(calls)
    check_rules(model, texts()[:1], rows=4)
    assert len(calls) > asked


class WritesLate(nn.Module):
    """Writes to a weight on the call after those of the questions."""

    def __init__(self):
        super().__init__()
        self.mean, self.armed = nn.Parameter(torch.zeros(16)), False

    def forward(self, x):
        if self.armed:
            self.mean.data += 1
        return x


LATE = {
    **RUNS,
    "generate": lambda model, tokenizer: tomfisher.evaluate.score(
        model, tokenizer, stories(), "generate", max_new_tokens=4, progress=False
    ),
    "analysis": lambda model, tokenizer: tomfisher.analysis.analyze(model, texts(), progress=False),
}


@pytest.mark.parametrize("run", LATE)
def test_a_weight_that_is_written_late_is_named(run, tokenizer, monkeypatch):
    model = made(within(WritesLate))
    asked = rules._asked

    def ask(*arguments):
        found = asked(*arguments)
        model.model.norm[1].armed = True
        return found

    monkeypatch.setattr(rules, "_asked", ask)
    with pytest.raises(ValueError, match=r"leaves the weights as they are.*changed model\.norm\.1\.mean"):
        LATE[run](model, tokenizer)


def test_as_many_rows_are_tried_as_a_batch_of_short_texts_holds():
    class Many(nn.Module):
        def forward(self, x):
            return x + x.mean(0) if len(x) > 40 else x

    draw = random.Random(2)
    many = [[draw.randrange(4, 64) for _ in range(n)] for n in (64, *[6] * 60)]
    assert check_rules(made(within(Many)), many, tokens=512).batches == SINGLE
    assert (
        check_rules(made(within(Many)), many, tokens=200).batches == PADDED
    )  # such a run has at most 33 rows


def test_logits_are_kept_only_where_positions_select_them():
    assert check_rules(made(llama), texts()).rows.kept
    assert not check_rules(made(RIGHT["number of logits"][0]), texts()).rows.kept
