"""The comparison: a planted ability is restored, choices come from the validation samples, the model is as before."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from bits import same_bits, state_of
from tomfisher import SparseMask
from tomfisher.evaluate.records import Record, Scores
from tomfisher.evaluate.statistics import sign_flip_test, wilson_interval
from tomfisher.finetune import finetune_masked
from tomfisher.finetune.training import mean_loss
from tomfisher.results import Results
from tomfisher.results.trainings import condition_table, sentences, start_of, training_table
from tomfisher.studies.finetune import Damage, Plan, compare
from tomfisher.studies.training_samples import cut
from tomfisher.tasks import load
from training import some_mask, trainable_model, training_samples

pytestmark = pytest.mark.slow

pytest.importorskip("peft", reason="LoRA is compared through the package peft (extra `finetune`)")


class Measure:
    """Scores the samples: right where the last token is the most likely one; half are of another condition."""

    def __init__(self, model, samples):
        self.model, self.samples, self.calls = model, samples, 0

    @torch.no_grad()
    def __call__(self):
        self.calls += 1
        records = []
        for i, sample in enumerate(self.samples):
            logits = self.model(sample.input_ids[None]).logits[0, -2]
            right = float(int(logits.argmax()) == int(sample.input_ids[-1]))
            condition = "contents/false-belief" if i % 2 else "contents/open"
            records.append(Record(f"s{i}", condition, condition, f"c{i}", "belief", right, "x"))
        loss = mean_loss(self.model, self.samples)
        return Scores(tuple(records)), SimpleNamespace(token=2.718281828**loss, word=100.0, rules=None)


PLAN = Plan(steps=25, learning_rates=(1e-6, 2e-2), batch_size=5, random_masks=2, seed=3)


@pytest.fixture
def samples():
    return training_samples()


@pytest.fixture
def found(samples):
    model = trainable_model().eval()
    mask, before = some_mask(model, 0.2), state_of(model)
    measure = Measure(model, samples)
    comparison, delta = compare(model, mask, samples, samples, measure, PLAN)
    assert same_bits(state_of(model), before)
    return SimpleNamespace(model=model, mask=mask, measure=measure, comparison=comparison, delta=delta)


def test_every_state_is_measured_once_and_trained_alike(found, samples):
    comparison, mask = found.comparison, found.mask
    untouched, *trained = comparison.select(condition="all")
    assert untouched.state == "untouched" and untouched.trainable == 0
    assert [row.state for row in trained] == ["masked", "random", "random", "lora"]
    assert found.measure.calls == 5 and not comparison.left_out
    assert [row.seed for row in trained[1:3]] == [3, 4]
    assert [row.trainable for row in trained][:3] == [mask.nnz] * 3
    assert 0.8 * mask.nnz < trained[3].trainable <= mask.nnz
    assert {row.learning_rate for row in trained} == {2e-2}
    trainings = comparison.provenance["trainings"]
    assert [(t["state"], t["seed"]) for t in trainings] == [(row.state, row.seed) for row in trained]
    for training in trainings:
        losses = training["validation_losses"]
        assert list(losses) == ["1e-06", "0.02"] and losses["0.02"] < losses["1e-06"]
    with finetune_masked(found.model, mask, samples, 25, 2e-2, 5, seed=3) as alone:
        assert trainings[0]["validation_losses"]["0.02"] == mean_loss(found.model, samples)
        assert trained[0].train_loss == alone.losses[-1]
        assert all(torch.equal(found.delta.new[n], alone.delta.new[n]) for n in alone.delta.new)


def test_accuracies_intervals_and_tests_equal_a_direct_computation(found, samples):
    base, _ = found.measure()
    from tomfisher.finetune import apply

    with apply(found.model, found.delta):
        after, perplexity = found.measure()
    for name, members in (
        ("false-belief", [1, 3, 5, 7, 9]),
        ("contents/open", [0, 2, 4, 6, 8]),
        ("all", range(10)),
    ):
        before, now = ([scores.records[i].correct for i in members] for scores in (base, after))
        (row,) = found.comparison.select(state="masked", condition=name)
        assert row.accuracy == sum(now) / len(now) and row.n == len(now)
        assert row.ci95 == wilson_interval(sum(now), len(now))
        assert row.p_vs_baseline == row.p_vs_start == sign_flip_test(before, now, range(len(now)))
        assert row.p_vs_masked is None
        assert found.comparison.select(state="lora", condition=name)[0].p_vs_masked is not None
        assert row.perplexity == perplexity.token
    # the last condition is all questions; a planted success: training data
    assert row.accuracy >= start_of(found.comparison, "all").accuracy + 0.5


def test_a_damaged_start_is_measured_and_undone(samples):
    model = trainable_model().eval()
    mask, before = some_mask(model, 0.2), state_of(model)
    with finetune_masked(model, mask, samples, steps=40, learning_rate=2e-2):
        able = state_of(model)
        comparison, delta = compare(
            model,
            mask,
            samples,
            samples,
            Measure(model, samples),
            replace(PLAN, lora=False),
            Damage(mask, "zero"),
        )
        assert same_bits(state_of(model), able)
    assert same_bits(state_of(model), before)
    untouched, start, masked = comparison.select(condition="all")[:3]
    assert (untouched.state, start.state, start_of(comparison, "all")) == ("untouched", "start", start)
    assert start.accuracy < untouched.accuracy <= masked.accuracy
    assert start.p_vs_start is None and start.p_vs_baseline < 1
    assert masked.p_vs_baseline != masked.p_vs_start
    assert all(bool((old == 0).all()) for old in delta.old.values())
    assert f"{mask.nnz} entries overwritten, fill zero" in start.about


def test_what_diverges_or_does_not_fit_is_noted(samples):
    model = trainable_model(dtype=torch.float16)
    mask = some_mask(model)
    plan = Plan(steps=2, learning_rates=(1e7,), random_masks=0)
    name = "model.layers.0.self_attn.k_proj.weight"
    small = SparseMask({name: torch.arange(20)}, {name: mask.shapes[name]})
    comparison, delta = compare(model, small, samples, samples, Measure(model, samples), plan)
    assert {row.state for row in comparison.rows} == {"untouched"} and delta is None
    assert "no training came to an end" in comparison.left_out["masked"]
    assert "diverged" in comparison.left_out["masked"] and "smallest LoRA" in comparison.left_out["lora"]
    assert (
        "Not done: masked" in " ".join(sentences(comparison))
        and "untouched" in training_table(comparison).text()
    )


def test_files_tables_and_sentences(found, tmp_path):
    comparison = found.comparison
    comparison.save(tmp_path, "finetune")
    assert Results.load(tmp_path, "finetune") == comparison
    lines = (tmp_path / "finetune.csv").read_text().splitlines()
    assert len(lines) == 1 + len(comparison.rows)
    table = training_table(comparison).text().splitlines()
    assert [line.split()[0] for line in table[2:]] == ["untouched", "masked", "random", "lora"]
    assert str(found.mask.nnz) in table[3] and "0.02" in table[3]
    assert "contents/open" in condition_table(comparison)
    words = " ".join(sentences(comparison))
    assert words.startswith("Start: false-belief accuracy") and "lora against masked" in words
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a finetune\.json"):
        Results.load(tmp_path, "finetune")


def state(comparison, name, headline, other, p, p_other=1.0):
    """A trained state with given accuracies."""
    own = {"state": name, "trainable": 5, "n": 10, "p_vs_baseline": p, "p_vs_masked": 1.0}
    first = replace(comparison.rows[0], **own, condition="false-belief", accuracy=headline, p_vs_start=p)
    return first, replace(first, condition="contents/open", accuracy=other, p_vs_start=p_other)


def test_sentences_say_rise_fall_and_harm_after_holm(found):
    base = found.comparison
    start = state(base, "untouched", 0.5, 0.9, None)
    trained = [
        state(base, "masked", 0.9, 0.2, 0.001, 0.0001),
        state(base, "random", 0.6, 0.9, 0.03),
        state(base, "lora", 0.1, 0.9, 0.002),
    ]
    said = sentences(Results((*start, *chain(*trained))))
    assert "a significant rise (p = 0.003: exact sign-flip test over clusters, Holm)" in said[1]
    assert "1 of 1 other rows fall significantly: contents/open (0.900 to 0.200)" in said[1]
    assert "a significant fall" in said[3] and "other rows" not in said[3]
    again = [replace(row, seed=1) for row in trained[1]]
    alone = sentences(Results((*start, *trained[1], *again)))
    assert "no significant change (p = 0.06: exact sign-flip test over clusters, Holm)" in alone[1]


def test_bad_plans_and_missing_samples(found, samples):
    with pytest.raises(ValueError, match="learning_rates is empty"):
        Plan(learning_rates=())
    with pytest.raises(ValueError, match="positive number"):
        Plan(learning_rates=(1e-3, -1.0))
    with pytest.raises(ValueError, match="random_masks must be 0 or more"):
        Plan(random_masks=-1)
    with pytest.raises(ValueError, match="no validation samples"):
        compare(found.model, found.mask, samples, [], found.measure)


def test_training_and_validation_share_no_story():
    stories = load("false-belief", n=40, split="fisher")
    train, validation = cut(stories, 0.75)
    assert (len(train), len(validation)) == (30, 10) and train + validation == stories
    scenes = [{story.id.rsplit("/", 2)[0] for story in part} for part in (train, validation)]
    assert not scenes[0] & scenes[1]
    pairs = load("testbed", n=40, split="fisher")
    scenes = [{story.id.rsplit("/", 2)[0] for story in part} for part in cut(pairs, 0.7)]
    assert all(scenes) and not scenes[0] & scenes[1]
    evaluation = {story.prompt for story in load("false-belief")}
    assert not evaluation & {story.prompt for story in stories}
    assert [len(part) for part in cut(stories[:4], 0.99)] == [2, 2]
    with pytest.raises(ValueError, match="cannot be cut"):
        cut(stories[:2], 0.5)
