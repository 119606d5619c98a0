"""Questions in many scripts and tokenizers: log-probabilities, written words, begin tokens, lengths of choices."""

import copy
import math
import warnings

import pytest
import torch
import transformers

from tokenizer_kinds import CHAT, KINDS, tokenizer_of
from tomfisher.evaluate import ChoiceEvaluator, perplexity, score
from tomfisher.evaluate.choice import PACKED, STEPS, WHOLE
from tomfisher.tasks.story import Story

ITEMS = [
    ("The cup is in the", ("cupboard", "box", "old basket")),
    ("The cup is in the", ("drawer", "box", "basket")),
    ("小明把球放进了", ("篮子", "盒子", "桌子上")),
    ("ボールは", ("箱", "箱の中")),
    ("ลูกบอลอยู่ใน", ("ตะกร้า", "กล่อง")),
    ("गेंद यहाँ है:", ("टोकरी", "डिब्बा")),
    ("الكرة في", ("السلة", "الصندوق")),
    ("<u>Where is the ball?\n<a>\n", ("basket", "box")),
    ("Where is the ball? ", ("basket", "box")),
    ("the cup", ("boards", "s and boxes")),
]


def told(items, **more):
    return [
        Story(prompt, "", choices, i % len(choices), "task", 1, f"s{i}/0/q", "{story}", **more)
        for i, (prompt, choices) in enumerate(items)
    ]


@pytest.fixture(scope="module")
def model_of():
    """A random model over a tokenizer's vocabulary, with weights so large that mistakes show."""
    cache = {}

    def get(kind):
        if kind not in cache:
            torch.manual_seed(0)
            config = transformers.LlamaConfig(
                vocab_size=len(tokenizer_of(kind)),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=256,
                bos_token_id=None,
                eos_token_id=None,
            )
            model = transformers.LlamaForCausalLM(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim >= 2:
                        parameter.normal_(0, 0.2)
            cache[kind] = model
        return cache[kind]

    return get


def reference(model, ids, start):
    """log p of `ids[start:]` behind `ids[:start]`, whole sequence, float64, nothing shared."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logprobs = exact(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return sum(logprobs[t - 1, ids[t]].item() for t in range(start, len(ids)))


def cuts(tokenizer, prompt, choices, gap):
    """Ids of every whole text, and the position up to which none has a token that reaches beyond the prompt."""
    plain = [
        tokenizer(prompt + gap(prompt, choice) + choice, return_offsets_mapping=True) for choice in choices
    ]
    ids = [encoded["input_ids"] for encoded in plain]
    inside = [
        sum(end <= len(prompt) for _, end in encoded["offset_mapping"]) for encoded in plain
    ]  # begin tokens have (0, 0)
    return ids, min(inside)


def written_gap(prompt, choice):
    """What a writer of these items puts there."""
    latin = prompt[-1].isascii() and not prompt[-1].isspace()
    return " " if latin or "गे" in prompt or "ال" in prompt else ""


@pytest.mark.parametrize("strategy", [PACKED, STEPS, WHOLE])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_the_text_as_it_is_written(model_of, kind, strategy):
    tokenizer, model = tokenizer_of(kind, end=True), model_of(kind)
    # one token would be the whole text of some of these: nothing could come before it without a begin token
    items = ITEMS if kind != "words" else [item for item in ITEMS if item[0][0].isascii()]
    evaluator = ChoiceEvaluator(tokenizer, told(items), pack=strategy == PACKED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = evaluator.score(model, share_prefix=strategy != WHOLE)
    assert (found.shared_prefix, found.packed) == (strategy != WHOLE, strategy == PACKED)
    for record, (prompt, choices) in zip(found.records, items, strict=True):
        whole, cut = cuts(tokenizer_of(kind), prompt, choices, written_gap)
        expected = [reference(model, ids, cut) for ids in whole]
        assert record.logprobs == pytest.approx(expected, rel=1e-4, abs=1e-4), record.id
        assert record.num_tokens == tuple(len(ids) - cut for ids in whole)


@pytest.mark.parametrize("normalize", ["total", "token", "character", "byte"])
def test_choices_are_compared_by_what_is_asked_for(model_of, normalize):
    kind = "byte-level with begin"
    tokenizer, model, stories = tokenizer_of(kind), model_of(kind), told(ITEMS)
    found = score(model, tokenizer, stories, normalize=normalize)
    assert found.normalize == normalize
    for record, story in zip(found.records, stories, strict=True):
        lengths = {
            "total": [1] * len(story.choices),
            "token": record.num_tokens,
            "character": [
                len(choice) for choice in story.choices
            ],  # `completion_len` of lm-evaluation-harness
            "byte": [len(choice.encode("utf-8")) for choice in story.choices],  # its `byte_length`
        }[normalize]
        values = [a / b for a, b in zip(record.logprobs, lengths, strict=True)]
        best = max(range(len(values)), key=values.__getitem__)
        assert record.predicted == story.choices[best]
        assert record.correct == float(best == story.answer)
        others = [value for i, value in enumerate(values) if i != story.answer]
        assert record.margin == pytest.approx(values[story.answer] - max(others))
    total = score(model, tokenizer, stories)
    assert total.normalized(normalize) == found
    assert type(total).from_dict(found.to_dict()) == found


def test_the_ways_of_comparing_differ(model_of):
    kind = "byte-level with begin"
    plain = score(model_of(kind), tokenizer_of(kind), told(ITEMS))
    taken = {
        n: [r.predicted for r in plain.normalized(n).records] for n in ("total", "token", "character", "byte")
    }
    assert len({tuple(choices) for choices in taken.values()}) >= 3
    with pytest.raises(ValueError, match="normalize must be one of total, token, character, byte"):
        plain.normalized("words")
    with pytest.raises(ValueError, match="normalize must be one of"):
        ChoiceEvaluator(tokenizer_of(kind), told(ITEMS), normalize="words")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_begin_tokens_and_templates_are_those_of_the_reference(model_of, kind):
    tokenizer, model = copy.deepcopy(tokenizer_of(kind, end=True)), model_of(kind)
    tokenizer.chat_template = CHAT
    (story,) = told([("Where is the ball?", ("basket", "box"))])
    begin = tokenizer.bos_token_id
    turn = [{"role": "system", "content": "Be short."}, {"role": "user", "content": story.prompt}]
    shown = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    cases = {
        ("auto", False): (f"{story.prompt} ", [begin]),
        ("yes", False): (f"{story.prompt} ", [begin]),
        ("no", False): (f"{story.prompt} ", []),
        ("auto", True): (shown, []),  # the template writes its begin token itself
        ("yes", True): (shown, []),
    }
    for (bos, chat), (before, front) in cases.items():
        expected = []
        for choice in story.choices:
            ids = front + tokenizer(before + choice, add_special_tokens=False)["input_ids"]
            start = front + tokenizer(before.rstrip(" "), add_special_tokens=False)["input_ids"]
            expected.append(reference(model, ids, len(start)))
        found = score(
            model, tokenizer, [story], bos=bos, chat_template=chat, system="Be short." if chat else None
        )
        assert found.records[0].logprobs == pytest.approx(expected, rel=1e-4, abs=1e-4), (bos, chat)
        assert found.wording["bos"] == bos and found.wording["chat_template"] is chat


def force(model, tokenizer, prompt, written):
    """Make `model.generate` go on as this text does."""
    whole = tokenizer(prompt + written)["input_ids"]

    def generate(ids, **arguments):
        if arguments.get("output_logits"):  # the question whether it follows the forward: it does
            return type(model).generate(model, ids, **arguments)
        length = model.generation_config.max_new_tokens
        rest = (whole[ids.shape[1] :] + [tokenizer.eos_token_id] * length)[:length]
        assert ids.tolist() == [whole[: ids.shape[1]]]
        return torch.tensor([ids[0].tolist() + rest])

    model.generate = generate


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "metaspace bpe", "wordpiece"])
@pytest.mark.parametrize(
    ("prompt", "choices", "written", "right"),
    [
        ("The cup is in the", ("cupboard", "box"), " cupboard, and", True),
        ("The cup is in the", ("cupboard", "box"), " Cupboard.", True),
        ("The cup is in the", ("cup", "box"), " cupboard.", False),
        ("小明把球放进了", ("篮子", "盒子"), "篮子。他打开盒子", True),
        ("小明把球放进了", ("篮子", "盒子"), "篮子上", True),
        ("小明把球放进了", ("篮子", "盒子"), "盒子。", False),
        ("ボールは", ("箱の中", "箱"), "箱の中にあります。", True),
        ("ボールは", ("箱", "箱の中"), "箱の中にあります。", False),
        ("ลูกบอลอยู่ใน", ("ตะกร้า", "กล่อง"), "ตะกร้า กล่อง", True),
        ("गेंद", ("टोकरी", "डिब्बा"), " टोकरी। डिब्बा", True),
        ("गेंद", ("टोकरी", "डिब्बा"), " टोकरीं", False),
        ("الكرة في", ("السلة", "الصندوق"), " السلة، والصندوق", True),
        ("<u>Where is the ball?\n<a>\n", ("basket", "box"), "basket", True),
        ("Where is the ball? ", ("basket", "box"), "basket.", True),
    ],
)
def test_what_is_written_is_matched_in_every_script(model_of, kind, prompt, choices, written, right):
    tokenizer, model = tokenizer_of(kind), copy.copy(model_of(kind))
    force(model, tokenizer, prompt, written)
    for count in (None, 40):
        found = score(model, tokenizer, told([(prompt, choices)]), method="generate", max_new_tokens=count)
        assert found.records[0].correct == float(right), found.records[0].predicted


@pytest.mark.parametrize("asked", [1, 5, 8])
def test_an_answer_longer_than_what_is_written_is_never_cut(model_of, asked):
    tokenizer, model = tokenizer_of("byte-level"), copy.copy(model_of("byte-level"))
    prompt, answer = "小明把球放进了", "กล่องว่างเปล่า"
    needed = len(tokenizer(prompt + answer)["input_ids"]) - len(tokenizer(prompt)["input_ids"])
    assert needed > 8
    force(model, tokenizer, prompt, f"{answer}。")
    stories = told([(prompt, (answer, "盒子"))])
    with pytest.warns(
        UserWarning, match=rf"max_new_tokens is {asked}, .*'s0/0/q' has {needed} tokens: {needed + 1}"
    ):
        found = score(model, tokenizer, stories, method="generate", max_new_tokens=asked)
    assert found.records[0].correct == 1.0 and found.max_new_tokens == needed + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(model, tokenizer, stories, method="generate")
    assert found.records[0].correct == 1.0 and found.max_new_tokens == needed + 3


def test_a_word_that_goes_on_behind_the_answer_is_not_it(model_of):
    tokenizer, model = tokenizer_of("byte-level"), copy.copy(model_of("byte-level"))
    prompt, answer = "The cup is in the", "draw"
    needed = len(tokenizer(f"{prompt} {answer}")["input_ids"]) - len(tokenizer(prompt)["input_ids"])
    force(model, tokenizer, prompt, f" {answer}s")
    with pytest.warns(UserWarning, match="so that it can be right"):
        found = score(
            model, tokenizer, told([(prompt, (answer, "box"))]), method="generate", max_new_tokens=needed
        )
    assert (found.records[0].correct, found.records[0].predicted) == (0.0, "draws")


def test_an_accuracy_that_cannot_rise_is_said(model_of):
    tokenizer, model = tokenizer_of("words"), model_of("words")
    known = ("The cup is in the", ("cupboard", "box"))
    lost = ("The cup is in the", ("box", "wardrobe"))
    with pytest.warns(
        UserWarning, match=r"answers of 1 of 2 stories, such as 's1/0/q', .* cannot rise above 0\.5"
    ):
        score(model, tokenizer, told([known, lost]), method="generate")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(model, tokenizer, told([known]), method="generate")


def test_choices_that_are_the_same_in_tokens_are_said():
    unknown = ("The cup is in the", ("wardrobe", "cabinet"))
    with pytest.warns(UserWarning, match=r"1 of 2 stories, such as 's1/0/q', have choices that are the same"):
        ChoiceEvaluator(tokenizer_of("words"), told([("The cup is in the", ("cupboard", "box")), unknown]))


def perplexity_reference(model, begin, ids, window, stride):
    """Every token once, each window behind its begin tokens, one token at a time, float64."""
    exact, room = copy.deepcopy(model).double(), window - len(begin)
    stride, total = min(stride, room), 0.0
    for t in range(0 if begin else 1, len(ids)):
        start = 0 if t <= room else math.ceil((t - room) / stride) * stride
        with torch.no_grad():
            logits = exact(torch.tensor([begin + ids[start:t]]), use_cache=False).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[t]].item()
    return total


@pytest.mark.parametrize(
    ("window", "stride", "batch_size"), [(8, 8, 3), (9, 3, 2), (2, 1, 5), (200, None, 1)]
)
@pytest.mark.parametrize("bos", ["auto", "yes", "no"])
def test_every_window_of_the_perplexity_begins_as_a_text_does(model_of, window, stride, batch_size, bos):
    kind = "byte-level with begin"
    tokenizer, model = tokenizer_of(kind, end=True), model_of(kind)
    text = "放进了篮子。The cup is in it."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = [] if bos == "no" else [tokenizer.bos_token_id]
    found = perplexity(
        model, tokenizer, text, window=window, stride=stride, batch_size=batch_size, bos=bos, progress=False
    )
    assert found.num_tokens == len(ids) - (not begin)
    assert found.nll == pytest.approx(
        perplexity_reference(model, begin, ids, window, stride or window), rel=1e-5
    )
    if begin:
        brought = perplexity(
            model, tokenizer, f"<s>{text}", window=window, stride=stride, batch_size=batch_size, bos=bos
        )
        assert brought == found  # tokens, words and bytes


def test_a_window_has_room_for_its_begin_tokens(model_of):
    kind = "byte-level with begin"
    with pytest.raises(ValueError, match=r"window is 1, which leaves no room .* at least 2, or bos='no'"):
        perplexity(model_of(kind), tokenizer_of(kind), "The cup is in the cupboard.", window=1)
    with pytest.raises(ValueError, match="has no begin-of-sequence token"):
        perplexity(model_of("byte-level"), tokenizer_of("byte-level"), "The cup is in it.", bos="yes")
