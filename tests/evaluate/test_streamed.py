"""Questions and text on a model that is gone through layer by layer: the bits of the resident one, in one reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resident import Resident
from torch import Tensor

from bits import same_bits, state_of
from tomfisher import SparseMask, perturb
from tomfisher.evaluate import ChoiceEvaluator, PerplexityEvaluator, perplexity, score
from tomfisher.evaluate.streamed import Measured, measure, questions, text
from tomfisher.models.opened import is_streamed, open_model
from tomfisher.perturbation import State
from tomfisher.runtime.boundaries import Boundaries
from tomfisher.runtime.layer_calls import UnsupportedLayers
from training import some_mask

TEXT = "anna thinks that the bag is full of red apples . ben opens the box and sees a green ball in it . " * 3
PLAIN = State()
NAMES = ["llama", "gpt2", "opt", "mpt", "mixtral", "mamba"]


@pytest.fixture
def evaluators(tokenizer: Any, stories: Any) -> tuple[ChoiceEvaluator, PerplexityEvaluator]:
    return ChoiceEvaluator(tokenizer, stories, batch_size=4), PerplexityEvaluator(tokenizer, TEXT, window=16)


def resident(model: Any, evaluators: Any, state: State = PLAIN) -> tuple[Any, ...]:
    """Scores and perplexity of the whole model in this state, asked about the rules as it was loaded."""
    choice, windows = evaluators
    said = choice.ask(model), windows.ask(model)
    mask = SparseMask({}, {}) if state.mask is None else state.mask
    with perturb(model, mask, state.fill, state.seed, state.compat):
        scores = choice.score(model, share_prefix=False, progress=False, rules=said[0])
        return scores, windows.score(model, progress=False, rules=said[1])


def same(found: Measured, expected: tuple[Any, ...]) -> bool:
    (scores, perplexity), (own, text) = found.results, expected
    return scores.to_dict() == own.to_dict() and (perplexity, perplexity.rules) == (text, text.rules)


def readings(opened: Resident) -> int:
    """How often the layers were gone through."""
    (name, _), *_ = opened.layers
    return sum(asked.startswith(f"{name}.") for asked in opened.asked)


def programs(evaluators: Any) -> list[Any]:
    return [questions(evaluators[0]), text(evaluators[1])]


@pytest.mark.parametrize("name", NAMES)
def test_questions_and_text_give_the_resident_bits(fresh_model: Any, evaluators: Any, name: str) -> None:
    model = fresh_model(name)
    expected = resident(model, evaluators)
    opened = Resident(model)
    (found,) = measure(opened, programs(evaluators))
    assert same(found, expected)
    assert found.results[0].rules["strategy"] == "whole"
    assert readings(opened) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_all_masks_of_a_sweep_take_one_reading(fresh_model: Any, evaluators: Any, name: str) -> None:
    model = fresh_model(name)
    mask = _inside(some_mask(model))
    masks = [None, mask, *(mask.random_like(seed) for seed in range(3)), _inside(some_mask(model, 0.5))]
    states = [State(each) for each in masks]
    expected = [resident(model, evaluators, state) for state in states]
    before, opened = state_of(model), Resident(model)
    found = measure(opened, programs(evaluators), states)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert [each.nnz for each in found] == [0 if each is None else each.nnz for each in masks]
    assert readings(opened) == 1
    assert same_bits(state_of(model), before)
    assert len({each.results[1].nll for each in found}) == len(masks)  # every mask does something


def _inside(mask: SparseMask) -> SparseMask:
    return mask.restrict("*layers.*")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt-neox"])  # tied, and with a head of its own
@pytest.mark.parametrize("fill", ["mean", "noise", "scale:0.5"])
def test_masked_weights_outside_the_layers(fresh_model: Any, evaluators: Any, name: str, fill: str) -> None:
    model = fresh_model(name)
    states = [State(), State(some_mask(model), fill, seed=3), State(_inside(some_mask(model)), fill, seed=4)]
    expected = [resident(model, evaluators, state) for state in states]
    before, opened = state_of(model), Resident(model)
    found = measure(opened, programs(evaluators), states)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert [each.nnz for each in found[1:]] == [state.mask.nnz for state in states[1:] if state.mask]
    assert readings(opened) == 1
    assert same_bits(state_of(model), before)


def test_hidden_states_may_go_to_a_file(fresh_model: Any, evaluators: Any, tmp_path: Path) -> None:
    model = fresh_model("llama")
    mask = _inside(some_mask(model))
    states = [State(), *(State(mask.random_like(seed)) for seed in range(4))]
    expected = measure(Resident(model), programs(evaluators), states)
    boundaries = Boundaries(tmp_path)
    found = measure(Resident(model), programs(evaluators), states, boundaries)
    assert [each.results for each in found] == [each.results for each in expected]
    assert boundaries.bytes_written > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])  # tied, learned positions, fused experts
def test_a_model_in_its_files_is_read_once(
    fresh_model: Any, evaluators: Any, tokenizer: Any, tmp_path: Path, name: str
) -> None:
    model = fresh_model(name)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mask = some_mask(model)
    states = [State(), State(mask), *(State(mask.random_like(seed)) for seed in range(2))]
    expected = [resident(model, evaluators, state) for state in states]
    opened = open_model(str(tmp_path))
    before = opened.bytes_read
    found = measure(opened, programs(evaluators), states)
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    weights = sum(p.nbytes for p in model.parameters())
    assert opened.bytes_read - before == weights
    assert is_streamed(opened.model)
    with pytest.raises(ValueError, match="in their files"):
        evaluators[0].score(opened.model)


def test_hidden_states_that_do_not_fit_are_refused_before_the_work(
    fresh_model: Any, evaluators: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Resident(fresh_model("llama"))
    monkeypatch.setattr("tomfisher.runtime.boundaries.free_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"hidden states of 1 states .* there are 1e-05 GB"):
        measure(opened, programs(evaluators))
    assert readings(opened) == 0


class _Leaning(torch.nn.Module):
    """A layer whose numbers lean on how many rows stand in the forward, so that rows have to run alone."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> Any:
        return self.layer(hidden, **kwargs) * (1 + 0.1 * (hidden.shape[0] - 1))


def test_a_model_that_wants_single_rows_is_read_again(fresh_model: Any, evaluators: Any) -> None:
    model = fresh_model("llama")
    model.model.layers[0] = _Leaning(model.model.layers[0])
    expected = resident(model, evaluators)
    assert expected[0].rules["batches"] == "single rows"
    opened = Resident(model)
    (found,) = measure(opened, programs(evaluators))
    assert same(found, expected)
    assert readings(opened) == 3  # padded batches, what is asked where those differ, single rows


@pytest.mark.parametrize("always", [True, False])
def test_what_passes_between_layers_unseen_is_refused(
    fresh_model: Any, evaluators: Any, always: bool
) -> None:
    """By running the model with made-up weights; with the weights themselves if it shows only there."""
    model, lengths = fresh_model("llama"), list[int]()
    first, second = (layer.mlp for layer in model.model.layers)
    own = second.up_proj.weight.detach().clone()

    def change(module: Any, args: Any, output: Tensor) -> Tensor:
        length = lengths.pop() if lengths else 1
        return output * length if always or torch.equal(module.up_proj.weight, own) else output

    first.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    second.register_forward_hook(change)
    said = "makes something else of a short text" if always else "log-probabilities of a short text differ"
    with pytest.raises(UnsupportedLayers, match=said):
        measure(Resident(model), programs(evaluators))


def test_a_rule_that_is_broken_is_named(fresh_model: Any, evaluators: Any) -> None:
    model = fresh_model("llama")
    model.model.layers[1].mlp.register_forward_hook(
        lambda module, args, output: output + output.mean(1, keepdim=True)
    )
    with pytest.raises(ValueError, match='breaks the rule "causal"'):
        measure(Resident(model), programs(evaluators))


def test_a_layer_that_writes_to_its_weights_is_named(fresh_model: Any, evaluators: Any) -> None:
    model = fresh_model("llama")
    weight = model.model.layers[1].mlp.up_proj.weight

    def writing() -> None:
        weight.data.mul_(1.01)

    model.model.layers[1].mlp.register_forward_hook(lambda *_: writing())
    with pytest.raises(ValueError, match=r"running it changed mlp\.up_proj\.weight"):
        measure(Resident(model), programs(evaluators))


def test_masks_that_do_not_fit_are_refused_before_the_work(fresh_model: Any, evaluators: Any) -> None:
    opened = Resident(fresh_model("llama"))
    name = "model.layers.0.mlp.up_proj.weight"
    other = SparseMask({name: torch.tensor([1])}, {name: (2, 3)})
    with pytest.raises(ValueError, match="The mask must be of this model"):
        measure(opened, programs(evaluators), [State(other)])
    shape = tuple(opened.model.get_parameter(name).shape)
    full = SparseMask({name: torch.arange(shape[0] * shape[1])}, {name: shape})
    with pytest.raises(ValueError, match="masked entirely"):
        measure(opened, programs(evaluators), [State(full)])
    assert not opened.asked


def test_score_and_perplexity_take_an_opened_model(fresh_model: Any, tokenizer: Any, stories: Any) -> None:
    model = fresh_model("llama")
    opened = Resident(model)
    expected = score(model, tokenizer, stories, share_prefix=False, progress=False)
    assert score(opened, tokenizer, stories, progress=False).records == expected.records
    windows = {"window": 16, "progress": False}
    assert perplexity(opened, tokenizer, TEXT, **windows) == perplexity(model, tokenizer, TEXT, **windows)
    with pytest.raises(ValueError, match="Generating needs the whole model in memory"):
        score(opened, tokenizer, stories, method="generate")
    with pytest.raises(ValueError, match="share_prefix=True needs the whole model in memory"):
        score(opened, tokenizer, stories, share_prefix=True)


def test_layers_that_cannot_be_run_one_at_a_time_are_refused(fresh_model: Any, evaluators: Any) -> None:
    model = fresh_model("llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UnsupportedLayers):
        measure(Resident(model), programs(evaluators))
