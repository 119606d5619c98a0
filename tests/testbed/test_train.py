from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tomfisher.cli.main import main
from tomfisher.testbed import language
from tomfisher.testbed.recipe import Recipe
from tomfisher.testbed.tokenizer import word_ids
from tomfisher.testbed.train import held_out_accuracy, held_out_perplexity, train

pytestmark = pytest.mark.slow

TINY = Recipe(
    steps=20,
    seed=0,
    stories=4,
    general_tokens=128,
    hidden=32,
    intermediate=32,
    layers=1,
    heads=2,
    warmup=2,
    learning_rate=1e-2,
    log_every=5,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("testbed") / "tiny"
    before = torch.get_num_threads()
    state = torch.random.get_rng_state()
    record = train(folder, TINY, threads=1, progress=False)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.random.get_rng_state(), state)
    return folder, record


def test_short_training_writes_a_folder_that_transformers_loads(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, record = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == len(word_ids())
    assert model.config.max_position_embeddings == tokenizer.model_max_length
    assert held_out_perplexity(model) == pytest.approx(record["result"]["perplexity"], rel=1e-5)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_loss_falls_and_is_logged(trained):
    _, record = trained
    log = record["log"]
    assert [entry["step"] for entry in log] == [5, 10, 15, 20]
    assert log[-1]["story_loss"] < log[0]["story_loss"] - 0.5
    assert log[-1]["general_loss"] < math.log(len(word_ids())) - 0.5
    assert 1 < record["result"]["perplexity"] < len(word_ids())


def test_record_says_how_it_was_made(trained):
    folder, record = trained
    stored = json.loads((folder / "training.json").read_text())
    assert stored == json.loads(json.dumps(record))
    assert stored["recipe"]["seed"] == 0 and stored["threads"] == 1
    assert stored["command"] == "tomfisher testbed train --steps 20 --seed 0 --threads 1"
    assert stored["versions"]["torch"] == torch.__version__
    assert str(folder.parent) not in (folder / "training.json").read_text()


def test_same_seed_gives_identical_weights_and_another_seed_does_not(trained, tmp_path):
    folder, record = trained
    torch.manual_seed(99)
    again = train(tmp_path / "again", TINY, threads=1, progress=False)
    assert again["result"]["sha256"] == record["result"]["sha256"]
    first, second = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    short = Recipe(steps=1, stories=2, general_tokens=16, hidden=32, intermediate=32, layers=1, heads=2)
    hashes = {
        train(tmp_path / str(seed), Recipe(**{**vars(short), "seed": seed}), threads=1, progress=False)[
            "result"
        ]["sha256"]
        for seed in (0, 1)
    }
    assert len(hashes) == 2


def test_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        train(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_diverging_training_stops_and_leaves_nothing(tmp_path):
    wild = Recipe(**{**vars(TINY), "learning_rate": math.inf})
    with pytest.raises(FloatingPointError, match="step 2"):
        train(tmp_path / "wild", wild, progress=False)
    assert not list(tmp_path.iterdir())


def test_thread_count_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="threads"):
        train(tmp_path / "new", TINY, threads=0)


class Copying(torch.nn.Module):
    """Gives the highest logit to the word that was last seen among the ids above `lowest`."""

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, len(word_ids()))
        for row in range(ids.shape[0]):
            for position in range(ids.shape[1]):
                for earlier in range(position + 1):
                    logits[row, position, ids[row, earlier]] = earlier
        return type("Output", (), {"logits": logits})


def test_held_out_accuracy_scores_the_last_mentioned_choice_as_counted_by_hand():
    stories = language.stories(64)

    def last_mentioned(story):
        words = story.prompt.split()
        return max(story.choices, key=lambda choice: len(words) - words[::-1].index(choice))

    accuracy = held_out_accuracy(Copying(), stories, rows=7)
    for group in {story.group for story in stories}:
        mine = [last_mentioned(story) == story.answer_text for story in stories if story.group == group]
        assert accuracy[group] == pytest.approx(sum(mine) / len(mine))
    assert accuracy["all"] == pytest.approx(
        sum(last_mentioned(story) == story.answer_text for story in stories) / 64
    )


def test_command_line_refuses_an_existing_folder(tmp_path, capsys):
    assert main(["testbed", "train", "--output_path", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["testbed"])


def test_command_line_trains(tmp_path, capsys, monkeypatch):
    seen = {}

    def fake(output_path, recipe, threads=None, progress=True):
        seen.update(path=output_path, recipe=recipe, threads=threads)
        return {
            "result": {"accuracy": {"all": 0.5}, "perplexity": 2.0, "parameters": 1000, "seconds": 1.0},
        }

    monkeypatch.setattr("tomfisher.testbed.train.train", fake)
    assert (
        main(["testbed", "train", "--output_path", "x", "--steps", "3", "--seed", "7", "--threads", "1"]) == 0
    )
    assert seen == {"path": "x", "recipe": Recipe(steps=3, seed=7), "threads": 1}
    printed = capsys.readouterr().out
    assert "all" in printed and "0.500" in printed and "1,000 parameters" in printed
    assert main(["testbed", "train", "--architecture", "mamba", "--second_order"]) == 0
    assert seen == {"path": "runs/testbed2-mamba", "recipe": Recipe.of("mamba", True), "threads": None}
    assert main(["testbed", "train"]) == 0
    assert seen == {"path": "runs/testbed-llama", "recipe": Recipe(), "threads": None}
    assert main(["testbed", "train", "--architecture", "gpt2"]) == 2
    assert "llama, qwen2, mpt, mamba, jamba" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mpt", "mamba", "jamba"])
def test_other_architectures_train_on_second_order_stories_reproducibly(name, tmp_path):
    sizes = {"hidden": 32, "intermediate": 64, "layers": 2, "heads": 2, "stories": 4, "general_tokens": 64}
    recipe = Recipe.of(name, True, **sizes, steps=8, warmup=2, log_every=4, learning_rate=1e-2)
    first, second = (train(tmp_path / str(i), recipe, threads=1, progress=False) for i in range(2))
    assert first["result"]["sha256"] == second["result"]["sha256"]
    assert first["log"][-1]["story_loss"] < first["log"][0]["story_loss"]
    assert set(first["log"][0]) >= {"false_belief", "second_order"}
    assert "second-order/false-belief/first-order" in first["result"]["accuracy"]
    assert first["command"] == (
        f"tomfisher testbed train --architecture {name} --second_order --steps 8 --seed 1 --threads 1"
    )
