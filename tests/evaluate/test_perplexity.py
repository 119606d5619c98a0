import copy
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch

from tomfisher.evaluate import perplexity

LANGUAGE = "anna ben clara bag box basket tin full of popcorn chocolate red green apple apples thinks"
WORDS = LANGUAGE.split()


def text_of(count, seed=0):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def oracle(model, ids, window, stride):
    """Every token after the first, with the context that the sliding-window recipe gives it, one at a time."""
    exact = copy.deepcopy(model).double()
    total = 0.0
    for t in range(1, len(ids)):
        # the first window whose inputs reach position t - 1
        k = 0 if t - 1 < window else math.ceil((t - window) / stride)
        with torch.no_grad():
            logits = exact(torch.tensor([ids[k * stride : t]])).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[t]].item()
    return total


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize(
    ("count", "window", "stride", "batch_size"),
    [
        (40, 8, 8, 3),
        (41, 8, 8, 1),
        (41, 8, 3, 2),
        (33, 16, 1, 4),
        (9, 8, 5, 4),
        (10, 64, None, 4),
        (2, 8, 4, 1),
        (12, 1, 1, 5),
    ],
)
def test_every_token_counts_once_with_its_context(models, tokenizer, name, count, window, stride, batch_size):
    text = text_of(count)
    found = perplexity(models(name), tokenizer, text, window=window, stride=stride, batch_size=batch_size)
    expected = oracle(models(name), tokenizer(text)["input_ids"], window, stride or window)
    assert found.num_tokens == count - 1
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.token == pytest.approx(math.exp(expected / (count - 1)), rel=1e-5)


def test_words_and_bytes_are_those_of_the_scored_part(models, bos_tokenizer, tokenizer):
    text = "anna, the  bag.\n\nchocolate ünknown"
    with_start = perplexity(models("llama"), bos_tokenizer, text)
    assert (with_start.num_tokens, with_start.num_words) == (7, 5)
    assert with_start.word == pytest.approx(math.exp(with_start.nll / 5))
    assert with_start.bits_per_byte == pytest.approx(with_start.nll / math.log(2) / len(text.encode()))
    without = perplexity(models("llama"), tokenizer, text)
    # "anna" is never predicted; ", the ..." is what is left
    assert (without.num_tokens, without.num_words) == (6, 5)
    assert without.bits_per_byte == pytest.approx(without.nll / math.log(2) / len(text[4:].encode()))


def test_max_tokens_cuts_words_and_bytes_too(models, tokenizer):
    text = text_of(50)
    head = " ".join(text.split()[:21])
    cut = perplexity(models("llama"), tokenizer, text, window=8, stride=4, max_tokens=20)
    whole = perplexity(models("llama"), tokenizer, head, window=8, stride=4)
    assert cut == whole
    assert (cut.num_tokens, cut.num_words) == (20, 20)
    documents = [" ".join(text.split()[:11]), " ".join(text.split()[11:])]
    spread = perplexity(models("llama"), tokenizer, documents, window=8, max_tokens=15)
    assert spread.num_tokens == 15
    assert perplexity(models("llama"), tokenizer, documents, window=8, max_tokens=10) == perplexity(
        models("llama"), tokenizer, documents[0], window=8
    )


def test_slow_tokenizers_count_by_decoding(models, tokenizer):
    class Slow:
        is_fast = False
        all_special_ids = tokenizer.all_special_ids

        def __call__(self, text, return_offsets_mapping=False, **arguments):
            assert not return_offsets_mapping, "slow tokenizers refuse this"
            return tokenizer(text, **arguments)

        def decode(self, ids, **arguments):
            return tokenizer.decode(ids, **arguments)

    text = text_of(30)
    for limit in (None, 11):
        slow, fast = (perplexity(models("llama"), t, text, max_tokens=limit) for t in (Slow(), tokenizer))
        assert (slow.nll, slow.num_tokens, slow.num_words) == (fast.nll, fast.num_tokens, fast.num_words)


def test_documents_are_texts_of_their_own(models, tokenizer):
    documents = [text_of(17, 1), "", "anna", text_of(9, 2), text_of(17, 3)]
    parts = [perplexity(models("llama"), tokenizer, documents[i], window=8) for i in (0, 3, 4)]
    joint = perplexity(models("llama"), tokenizer, documents, window=8)
    assert joint.nll == pytest.approx(sum(part.nll for part in parts))
    assert joint.num_tokens == sum(part.num_tokens for part in parts)
    assert joint.num_words == sum(part.num_words for part in parts)
    assert perplexity(models("llama"), tokenizer, SimpleNamespace(documents=documents), window=8) == joint


def test_long_chunks_add_up(models, tokenizer, monkeypatch):
    import importlib

    module = importlib.import_module("tomfisher.evaluate.perplexity")
    text = text_of(60)
    whole = perplexity(models("llama"), tokenizer, text, window=64)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert perplexity(models("llama"), tokenizer, text, window=64).nll == pytest.approx(whole.nll, rel=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "anna", [], ["", "anna"]])
def test_nothing_to_score(models, tokenizer, text):
    with pytest.raises(ValueError, match="nothing to score"):
        perplexity(models("llama"), tokenizer, text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": 8, "stride": 9}, "stride is 9"),
        ({"window": 8, "stride": 0}, "stride is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"window": 65}, "65 tokens.*64"),
    ],
)
def test_bad_settings(models, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        perplexity(models("llama"), tokenizer, text_of(100), **settings)


def test_nan_and_wrong_types_are_refused_and_flags_come_back(fresh_model, tokenizer):
    model = fresh_model("llama").train()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="must be finite"):
        perplexity(model, tokenizer, text_of(20))
    assert all(module.training for module in model.modules())
    with pytest.raises(TypeError, match="type int"):
        perplexity(model, tokenizer, [3])


def test_perplexity_per_word_is_none_beyond_a_float(models, tokenizer):
    text = text_of(300).replace(" ", "\u2060")  # joined: one word for split()
    found = perplexity(models("llama"), tokenizer, text, window=32)
    assert found.num_words == 1 and found.nll > 710 and found.word is None
    json.dumps(found.to_dict(), allow_nan=False)
