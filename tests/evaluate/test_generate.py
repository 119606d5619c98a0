import copy

import pytest
import torch

from tomfisher.evaluate import generate, score
from tomfisher.evaluate.generate import first_word

FAMILIES = ["llama", "gpt2", "mpt", "mamba", "jamba"]


@pytest.fixture
def stories(stories, new_story):
    """The same prompts with answers that their first word tells apart."""
    return [
        new_story(story.prompt, "", ("popcorn", "red apples"), k % 2, story.id)
        for k, story in enumerate(stories)
    ]


def greedy(model, tokenizer, prompt, count, stop=()):
    """Full forward for every new token, no cache, no padding."""
    ids = list(tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_the_step_by_step_argmax(models, tokenizer, stories, name, batch_size):
    model = models(name)
    found = score(model, tokenizer, stories, method="generate", batch_size=batch_size, max_new_tokens=3)
    for record, story in zip(found.records, stories, strict=True):
        word = first_word(greedy(model, tokenizer, story.prompt, 3))
        assert record.predicted == word, record.id
        assert record.correct == float(word == first_word(story.choices[story.answer]))
        assert record.logprobs is None


def test_right_and_wrong_words_are_told_apart(models, tokenizer, stories, new_story):
    model = models("llama")
    prompt = stories[0].prompt
    word = first_word(greedy(model, tokenizer, prompt, 1))
    other = "tin" if word != "tin" else "box"
    found = score(
        model,
        tokenizer,
        [
            new_story(prompt, "", (word.upper() + " and more", other), 0, "right/0/belief"),
            new_story(prompt, "", (word, other), 1, "wrong/0/belief"),
        ],
        method="generate",
    )
    assert [record.correct for record in found.records] == [1.0, 0.0]


def test_settings_of_the_model_are_set_aside_and_come_back(fresh_model, tokenizer, stories):
    model = fresh_model("llama")
    plain = score(model, tokenizer, stories, method="generate")
    settings = model.generation_config
    settings.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, max_new_tokens=1, top_k=3)
    before = copy.deepcopy(settings.to_dict())
    state = torch.get_rng_state()
    assert score(model, tokenizer, stories, method="generate") == plain
    assert model.generation_config is settings
    assert settings.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_end_token_stops_a_row_of_a_batch(fresh_model, tokenizer, stories):
    model = fresh_model("llama")
    first = greedy(model, tokenizer, stories[0].prompt, 1)
    end = tokenizer.convert_tokens_to_ids(first)
    model.generation_config.eos_token_id = end
    found = score(model, tokenizer, stories, method="generate")
    for record, story in zip(found.records, stories, strict=True):
        # the end token here is an ordinary word, so decoding keeps it; what follows must not be read
        assert record.predicted == first_word(greedy(model, tokenizer, story.prompt, 5, stop=(end,)))


def test_sampling_follows_the_tempered_top_p_distribution(models, tokenizer, new_story):
    model = models("llama")
    count, temperature, top_p = 4000, 0.7, 0.6

    def drawn(choices):
        """The story, and what became of it in `count` draws."""
        story = new_story("the bag is", "full of", choices, 0, "a/0/belief")
        settings = {"temperature": temperature, "top_p": top_p, "repetitions": count}
        found = score(
            model, tokenizer, [story], method="generate", max_new_tokens=1, batch_size=1000, **settings
        )
        return story, found.records[0]

    story, record = drawn(("popcorn", "chocolate"))
    assert len(record.outcomes) == count
    with torch.no_grad():
        logits = model(tokenizer(story.prompt, return_tensors="pt")["input_ids"]).logits[0, -1]
    probability = (logits.double() / temperature).softmax(-1)
    ordered, order = probability.sort(descending=True)
    size = int((ordered.cumsum(0) < top_p).sum()) + 1
    assert 1 < size < len(probability)
    words = {
        tokenizer.decode([int(i)]): (ordered[:size] / ordered[:size].sum())[k].item()
        for k, i in enumerate(order[:size])
    }
    for rank in (0, size - 1):
        word = list(words)[rank]
        deviation = (words[word] * (1 - words[word]) / count) ** 0.5
        assert drawn((word, "zzz"))[1].correct == pytest.approx(words[word], abs=4.5 * deviation), word
    excluded = tokenizer.decode([int(order[size])])
    assert drawn((excluded, "zzz"))[1].correct == 0.0


def test_draws_depend_on_seed_and_story_not_on_the_batch(models, tokenizer, stories):
    def run(chosen, **settings):
        return score(
            models("llama"), tokenizer, chosen, method="generate", temperature=2.0, repetitions=6, **settings
        ).records

    reference = run(stories)
    assert run(stories, batch_size=5) == reference
    assert run(stories[3:7]) == reference[3:7]
    assert run(stories, seed=1) != reference
    assert len({record.predicted for record in reference}) > 1


def test_greedy_has_nothing_to_repeat(models, tokenizer, stories):
    once, often = (
        score(models("llama"), tokenizer, stories, method="generate", repetitions=n) for n in (1, 5)
    )
    assert once == often
    assert len(often.records[0].outcomes) == 1


def test_special_tokens_at_the_end_of_the_prompt_are_left_out(models, bos_tokenizer, stories, monkeypatch):
    seen = []
    monkeypatch.setattr(
        generate,
        "_complete",
        lambda model, tokenizer, prompts, draw, cached: [seen.extend(prompts)] and ["x"] * len(prompts),
    )
    score(models("llama"), bos_tokenizer, stories, method="generate")
    assert all(ids[0] == 1 and 2 not in ids for ids in seen)
    assert len(seen) == len(stories)


def test_bad_input(models, fresh_model, tokenizer, stories, new_story):
    model = models("llama")
    for name, value in {
        "temperature": -1.0,
        "top_p": 0.0,
        "repetitions": 0,
        "max_new_tokens": 0,
        "batch_size": 0,
    }.items():
        with pytest.raises(ValueError, match=f"{name} is"):
            score(model, tokenizer, stories, method="generate", **{name: value})
    same = new_story("the bag is", "full of", ("red apples", "red popcorn"), 0, "same/0/belief")
    with pytest.raises(ValueError, match=r"'same/0/belief'.*shared by another"):
        score(model, tokenizer, [*stories, same], method="generate")
    long = new_story("the bag " * 31, "is", ("box", "tin"), 0, "long/0/belief")
    score(model, tokenizer, [long], method="generate", max_new_tokens=2)
    with pytest.raises(ValueError, match=r"'long/0/belief'.*65 tokens.*64"):
        score(model, tokenizer, [*stories, long], method="generate", max_new_tokens=3)
    with pytest.raises(ValueError, match="no stories"):
        score(model, tokenizer, [], method="generate")
    broken = fresh_model("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    broken.train()
    with pytest.raises(ValueError, match=r"Story '0/./.*NaN"):
        score(broken, tokenizer, stories[:2], method="generate")
    assert broken.training
