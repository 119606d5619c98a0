import copy
import warnings

import pytest
import torch

from tomfisher.evaluate import ChoiceEvaluator, score
from tomfisher.evaluate.choice import PACKED, STEPS, WHOLE
from tomfisher.evaluate.plan import cost

STRATEGIES = [PACKED, STEPS, WHOLE]
PACKED_HERE = ["llama", "gpt2", "opt", "gpt-neox", "mixtral"]
SHARING = [*PACKED_HERE, "mistral-window", "mpt"]
PLAIN = ["mamba", "jamba"]


def oracle(model, tokenizer, stories):
    """One answer at a time, whole sequence, whole logits, float64."""
    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")  # torch's grouped product knows no float64
    found = []
    for story in stories:
        start = tokenizer(story.prompt)["input_ids"]
        scores = []
        for choice in story.choices:
            ids = start + tokenizer(" " + choice)["input_ids"]
            with torch.no_grad():
                logprobs = exact(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
            scores.append(sum(logprobs[t - 1, ids[t]].item() for t in range(len(start), len(ids))))
        found.append(scores)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "batch_size", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SHARING)
def test_logprobs_are_the_oracles(models, tokenizer, stories, name, strategy, batch_size):
    model, share = models(name), strategy != WHOLE
    evaluator = ChoiceEvaluator(tokenizer, stories, batch_size, pack=strategy == PACKED)
    scores = evaluator.score(model, share_prefix=share)
    assert scores.shared_prefix is share
    assert scores.packed is (strategy == PACKED and name in PACKED_HERE)
    assert [way for way, _ in evaluator._plans] == [
        STEPS if strategy == PACKED and name not in PACKED_HERE else strategy
    ]
    for record, story, expected in zip(
        scores.records, stories, oracle(model, tokenizer, stories), strict=True
    ):
        assert record.logprobs == pytest.approx(expected, rel=2e-5, abs=2e-5), record.id
        others = [value for i, value in enumerate(expected) if i != story.answer]
        assert record.margin == pytest.approx(expected[story.answer] - max(others), rel=1e-4, abs=1e-4)
        assert record.predicted == story.choices[expected.index(max(expected))]
        assert record.correct == float(record.predicted == story.choices[story.answer])


@pytest.mark.parametrize("name", PLAIN)
def test_models_with_a_state_are_run_whole(models, tokenizer, stories, name):
    model = models(name)
    scores = score(model, tokenizer, stories, batch_size=4)
    assert not scores.shared_prefix
    for record, expected in zip(scores.records, oracle(model, tokenizer, stories), strict=True):
        assert record.logprobs == pytest.approx(expected, rel=2e-4, abs=2e-4), record.id
    with pytest.raises(ValueError, match="cannot be repeated"):
        score(model, tokenizer, stories, share_prefix=True)


def test_auto_shares_where_it_can_and_never_on_foreign_classes(models, tokenizer, stories):
    evaluator = ChoiceEvaluator(tokenizer, stories)
    model = models("llama")
    assert evaluator.score(model).shared_prefix
    foreign = copy.copy(model)
    foreign.__class__ = type("Foreign", (type(model),), {"__module__": "somebody.else"})
    assert not evaluator.score(foreign).shared_prefix


def test_sharing_and_merging_compute_fewer_tokens(tokenizer, stories):
    evaluator = ChoiceEvaluator(tokenizer, stories)
    answers = sum(len(story.choices) for story in stories)
    assert len(evaluator.rows) < answers
    packed, steps, whole = (cost(evaluator.plan(strategy)) for strategy in STRATEGIES)
    assert packed < 0.7 * steps and steps < whole


def gap(first, second):
    return max(
        abs(a - b)
        for x, y in zip(first.records, second.records, strict=True)
        for a, b in zip(x.logprobs, y.logprobs, strict=True)
    )


def test_a_wrong_cache_row_is_seen_and_rows_are_run_whole(models, tokenizer, stories, monkeypatch):
    """The oracle tests can fail: rows behind another story's cache give other numbers."""
    from tomfisher.evaluate import execute

    evaluator = ChoiceEvaluator(tokenizer, stories, pack=False)
    right = evaluator.score(models("llama"), share_prefix=True)
    select = execute._select
    monkeypatch.setattr(
        execute, "_select", lambda cache, parents, device: select(cache, [0] * len(parents), device)
    )
    evaluator = ChoiceEvaluator(tokenizer, stories, pack=False)
    with pytest.raises(ValueError, match="nats from those of single rows"):
        evaluator.score(models("llama"), share_prefix=True)
    found = evaluator.score(models("llama"))
    assert gap(right, found) < 1e-4 and not found.shared_prefix and "nats from" in found.rules["reason"]


@pytest.mark.parametrize("spoilt", ["positions", "mask"])
def test_wrong_positions_or_a_wrong_mask_are_seen_and_nothing_is_packed(
    models, tokenizer, stories, monkeypatch, spoilt
):
    from tomfisher.evaluate import execute

    right = ChoiceEvaluator(tokenizer, stories).score(models("llama"), share_prefix=True)
    layout = execute.layout

    def wrong_layout(batch):
        positions, visible = layout(batch)
        if spoilt == "mask":
            return positions, visible.new_ones(visible.shape).tril(batch.past)
        return torch.arange(positions.shape[1]).expand_as(positions) + batch.past, visible

    monkeypatch.setattr(execute, "layout", wrong_layout)
    found = ChoiceEvaluator(tokenizer, stories).score(models("llama"), share_prefix=True)
    assert gap(right, found) < 1e-4
    assert right.packed and not found.packed and "nats from those of single rows" in found.rules["reason"]


def test_evaluator_sees_the_model_as_it_is_now(fresh_model, tokenizer, stories):
    model = fresh_model("llama")
    evaluator = ChoiceEvaluator(tokenizer, stories)
    before = evaluator.score(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(-1)
    after = evaluator.score(model)
    assert after != before
    assert after == ChoiceEvaluator(tokenizer, stories).score(model)


def test_questions_of_unknown_words_are_said(tokenizer, new_story, stories):
    known = [new_story("the bag is", "full of", ("popcorn", "chocolate"), 0, "a/0/belief")]
    foreign = [new_story("der beutel ist", "voll mit", ("popcorn", "chocolate"), 0, "b/0/belief")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChoiceEvaluator(tokenizer, [*stories, *known])
    with pytest.warns(UserWarning, match="100% of the tokens of the questions are unknown"):
        ChoiceEvaluator(tokenizer, foreign)


def test_ties_share_the_point(fresh_model, tokenizer, new_story):
    model = fresh_model("llama", tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    found = score(
        model,
        tokenizer,
        [
            new_story("the bag is", "full of", ("popcorn", "chocolate"), 1, "a/0/belief"),
            new_story("the bag is", "full of", ("popcorn", "chocolate", "apples"), 0, "b/0/belief"),
            new_story("the bag is", "full of", ("red apples", "chocolate", "popcorn"), 0, "c/0/belief"),
        ],
    )
    assert [r.correct for r in found.records] == [0.5, pytest.approx(1 / 3), 0.0]
    assert [r.predicted for r in found.records] == ["popcorn", "popcorn", "chocolate"]
    assert found.records[0].margin == 0.0


def test_begin_token_counts_as_context_and_end_token_does_not(models, bos_tokenizer, stories):
    found = ChoiceEvaluator(bos_tokenizer, stories[:4])
    for row in found.rows:
        assert row.ids[0] == 1
        assert 2 not in row.ids
    model = models("llama")
    ids = [*bos_tokenizer(stories[0].prompt)["input_ids"][:-1]]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    wanted = [expected[bos_tokenizer.convert_tokens_to_ids(choice)].item() for choice in stories[0].choices]
    assert found.score(model).records[0].logprobs == pytest.approx(wanted, abs=1e-5)


def test_training_flags_come_back_also_after_an_error(fresh_model, tokenizer, stories):
    model = fresh_model("llama").train()
    model.model.layers[1].eval()
    flags = [module.training for module in model.modules()]
    score(model, tokenizer, stories)
    assert [module.training for module in model.modules()] == flags
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        score(model, tokenizer, stories)
    assert [module.training for module in model.modules()] == flags


def test_dropout_is_off(fresh_model, tokenizer, stories):
    model = fresh_model("gpt2").train()
    assert score(model, tokenizer, stories) == score(model, tokenizer, stories)


def test_nan_names_the_story(fresh_model, tokenizer, stories, new_story):
    model = fresh_model("llama", tie_word_embeddings=False)
    rare = new_story("clara looks back", "it is a", ("basket", "box"), 0, "rare/0/belief")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("clara")] = torch.nan
    with pytest.raises(ValueError, match=r"'rare/0/belief'.*2 of"):
        score(model, tokenizer, [*stories, rare])


def test_too_long_names_the_story_and_the_limit(models, tokenizer, stories, new_story):
    long = new_story("the bag " * 40, "is a", ("box", "tin"), 0, "long/0/belief")
    for name in ("llama", "gpt2", "mpt"):
        with pytest.raises(ValueError, match=r"'long/0/belief'.*82 tokens.*64"):
            score(models(name), tokenizer, [*stories, long])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "index into its 2 choices"),
        ({"answer": -1}, "index into its 2 choices"),
        ({"choices": ("popcorn",)}, "at least 2"),
        ({"choices": ("popcorn", "popcorn")}, "must differ"),
        ({"group": "all"}, "name of the union"),
    ],
)
def test_unusable_stories_are_named(tokenizer, new_story, change, message):
    story = new_story("the bag is", "full of", ("popcorn", "chocolate"), 1, "bad/0/belief")
    for name, value in change.items():
        setattr(story, name, value)
    with pytest.raises(ValueError, match=rf"'bad/0/belief' .*{message}"):
        ChoiceEvaluator(tokenizer, [story])


def test_other_bad_input(models, tokenizer, stories):
    with pytest.raises(ValueError, match="no stories"):
        ChoiceEvaluator(tokenizer, [])
    with pytest.raises(ValueError, match="unique"):
        ChoiceEvaluator(tokenizer, [stories[0], stories[0]])
    with pytest.raises(ValueError, match="batch_size is 0"):
        ChoiceEvaluator(tokenizer, stories, 0)
    with pytest.raises(ValueError, match="share_prefix is 'yes'"):
        score(models("llama"), tokenizer, stories, share_prefix="yes")
    with pytest.raises(ValueError, match='must be "choice" or "generate"'):
        score(models("llama"), tokenizer, stories, method="guess")


def test_bf16_agrees_with_fp32_to_its_precision(fresh_model, tokenizer, stories):
    model = fresh_model("llama")
    full = score(model, tokenizer, stories)
    half = score(model.to(torch.bfloat16), tokenizer, stories)
    for a, b in zip(full.records, half.records, strict=True):
        assert b.logprobs == pytest.approx(a.logprobs, abs=0.3)
