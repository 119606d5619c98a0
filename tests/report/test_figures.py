from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tomfisher import SparseMask, perturb
from tomfisher.analysis import attention_sinks
from tomfisher.report import (
    plot_attention_maps,
    plot_frequency_rows,
    plot_interventions,
    plot_mask_map,
    plot_sinks,
    plot_spectrum,
    plot_spectrum_change,
)
from tomfisher.report.style import CONTROL, STATES, TASK
from tomfisher.results import Results

LAYERS, HEADS, PAIRS = 3, 2, 4
FACTOR = {"baseline": 1.0, "task-control": 0.8, "control-only": 0.9, "random": 0.99}


class Measured:
    """Something of `tomfisher.analysis`."""

    def __init__(self, content):
        self.content = content

    def to_dict(self):
        return self.content


def states(inside, part):
    return {"baseline": inside["baseline"][part], **{k: v[part] for k, v in inside["states"].items()}}


def lines(axis):
    return {x.get_label(): x for x in axis.get_lines()}


@pytest.mark.parametrize("part", ["q", "k"])
def test_the_spectrum_is_the_mean_over_heads_and_layers(inside, part):
    _, axis = plot_spectrum(states(inside, "rope"), part)
    found = lines(axis)
    plain = np.array([1 + pair + 10 * 1 + 100 * 0.5 + (0.5 if part == "k" else 0) for pair in range(PAIRS)])
    for state, factor in FACTOR.items():
        assert found[STATES[state].label].get_ydata() == pytest.approx(factor * plain)
    assert {"q": "queries", "k": "keys"}[part] in axis.get_ylabel()
    (above,) = axis.child_axes
    assert [text.get_text() for text in above.get_xticklabels()] == ["6.5", "60", "700", "41k"]


def test_the_change_of_the_spectrum_is_relative_per_layer_and_pair(inside):
    before, after = inside["baseline"]["rope"], inside["states"]["task-control"]["rope"]
    _, axis = plot_spectrum_change(before, after, "k")
    (image,) = axis.get_images()
    assert np.allclose(image.get_array(), np.full((LAYERS, PAIRS), -20.0))
    after["layers"][2]["k"]["norm"] = [[0.0] * PAIRS] * HEADS
    _, axis = plot_spectrum_change(before, after, "k")
    assert np.allclose(axis.get_images()[0].get_array()[2], -100.0)


def test_no_change_and_nothing_before_can_be_drawn(inside):
    before = inside["baseline"]["rope"]
    _, axis = plot_spectrum_change(before, before)
    assert not axis.get_images()[0].get_array().any()
    before["layers"][0]["q"]["norm"] = [[0.0] * PAIRS] * HEADS
    _, axis = plot_spectrum_change(before, inside["states"]["random"]["rope"])
    assert axis.get_images()[0].get_array()[0].tolist() == [0.0] * PAIRS


def test_layers_with_fewer_pairs_leave_the_rest_empty(inside):
    spectrum = inside["baseline"]["rope"]
    for part in ("q", "k"):
        spectrum["layers"][1][part]["norm"] = [row[:2] for row in spectrum["layers"][1][part]["norm"]]
    _, axis = plot_spectrum({"baseline": spectrum})
    y = lines(axis)["untouched"].get_ydata()
    assert y[3] == pytest.approx(np.mean([4 + 50, 4 + 20 + 50]))


@pytest.mark.parametrize("measure", ["first_mass", "angle", "entropy"])
def test_sinks_are_means_over_heads_per_layer(inside, measure):
    _, axis = plot_sinks(states(inside, "sinks"), measure)
    found = lines(axis)
    for state, sinks in states(inside, "sinks").items():
        line = found[STATES[state].label]
        assert line.get_xdata().tolist() == [0, 1, 2]
        assert line.get_ydata() == pytest.approx([np.mean(layer[measure]) for layer in sinks["layers"]])
    assert ("orthogonal" in found) == (measure == "angle")


def test_an_unknown_measure_of_sinks_is_refused(inside):
    with pytest.raises(ValueError, match=r"no measure 'sink_rate' to draw. Measures: first_mass, angle"):
        plot_sinks(states(inside, "sinks"), "sink_rate")


def test_objects_are_drawn_like_what_they_write(inside):
    sinks = inside["baseline"]["sinks"]
    first, second = (plot_sinks({"baseline": x})[1] for x in (sinks, Measured(sinks)))
    assert lines(first)["untouched"].get_ydata().tolist() == lines(second)["untouched"].get_ydata().tolist()
    with pytest.raises(TypeError, match=r"A measurement of tomfisher.analysis .* got list"):
        plot_sinks({"baseline": [1, 2]})


def test_the_mask_map_is_the_masked_share_in_percent(inside):
    _, axis = plot_mask_map(inside["profile"])
    wanted = [[(10 * (layer + 1) + i) / 10 for i in range(4)] for layer in range(LAYERS)]
    assert np.allclose(axis.get_images()[0].get_array(), wanted)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["q", "k", "v", "up"]


def test_layers_without_a_weight_are_holes_in_the_map(inside):
    inside["profile"]["parts"] = [
        p for p in inside["profile"]["parts"] if (p["layer"], p["kind"]) != (1, "v")
    ]
    _, axis = plot_mask_map(inside["profile"])
    shares = np.ma.getdata(axis.get_images()[0].get_array())
    assert np.isnan(np.where(np.ma.getmaskarray(axis.get_images()[0].get_array()), np.nan, shares)[1, 2])


def test_a_mask_outside_the_layers_has_no_map(inside):
    for part in inside["profile"]["parts"]:
        part["layer"] = None
    with pytest.raises(ValueError, match="no weight inside a layer"):
        plot_mask_map(inside["profile"])


def test_rows_over_frequency_are_summed_and_dominant_heads_counted(inside):
    _, (above, below) = plot_frequency_rows(inside["profile"])

    def heights(axis, color):
        return [p.get_height() for p in axis.patches if matplotlib_hex(p) == color]

    for i, color in enumerate((TASK, CONTROL)):
        wanted = [
            sum(layer + 2 * head + pair * (i + 1) for layer in range(LAYERS) for head in range(HEADS))
            for pair in range(PAIRS)
        ]
        assert heights(above, color) == wanted
        assert heights(below, color) == [0, LAYERS, LAYERS, 0]
        even = [x.get_ydata()[0] for x in above.get_lines() if x.get_color() == color]
        assert even == [pytest.approx(np.mean(wanted))]


def test_without_tests_of_dominance_the_rows_are_still_drawn(inside):
    inside["profile"]["enrichment"] = None
    _, (above, below) = plot_frequency_rows(inside["profile"])
    assert len(above.patches) == 2 * PAIRS and not below.patches


def test_without_rotation_there_are_no_rows(inside):
    for part in inside["profile"]["parts"]:
        part["pairs"] = None
    with pytest.raises(ValueError, match="no rotated query or key weight"):
        plot_frequency_rows(inside["profile"])


def test_attention_maps_are_the_maps(inside):
    figure, panels = plot_attention_maps(inside["maps"])
    assert panels.shape == (HEADS, 2)
    for row, (head, found) in zip(panels, inside["maps"].items(), strict=True):
        for axis, state in zip(row, ("baseline", "task-control"), strict=True):
            assert np.allclose(axis.get_images()[0].get_array(), found[state])
            assert axis.get_title() == f"{head}: {STATES[state].label}"
    figure.canvas.draw()  # a dollar sign in a token is no formula
    assert [t.get_text() for t in panels[1, 0].get_xticklabels()] == ["<s>", r"\$a\$", "b"]
    with pytest.raises(ValueError, match="no attention map to draw"):
        plot_attention_maps({})


def test_attention_maps_of_a_real_model_are_drawn_from_what_the_analysis_gives():
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.5, **sizes)).eval()
    name = "model.layers.0.self_attn.q_proj.weight"
    mask = SparseMask({name: torch.arange(0, 256, 3)}, {name: (16, 16)})
    prompts = [[1, 5, 7, 2, 9], [1, 4, 4, 3]]

    def measure(heads):
        return attention_sinks(model, prompts, heads=heads, map_prompts=2, progress=False)

    states = {"baseline": measure([(0, 1), (1, 0)])}
    with perturb(model, mask):
        states["task-control"] = measure([(0, 1), (1, 0)])
    for prompt in (0, 1):
        _, panels = plot_attention_maps(states, prompt)
        for row, head in zip(panels, ((0, 1), (1, 0)), strict=True):
            for axis, state in zip(row, states, strict=True):
                wanted = states[state].maps[head][prompt]
                assert np.allclose(axis.get_images()[0].get_array(), wanted, atol=1e-6)
                assert axis.get_title() == f"{head[0]}.{head[1]}: {STATES[state].label}"
    assert not torch.equal(*(states[state].maps[0, 1][0] for state in states))
    with pytest.raises(ValueError, match=r"no measurement of the state 'task-control'.*attention_sinks"):
        plot_attention_maps({"baseline": states["baseline"]})
    with pytest.raises(ValueError, match=r"Head 1.0 has no map of the state 'task-control'.*attention_sinks"):
        plot_attention_maps({**states, "task-control": measure([(0, 1)])})
    with pytest.raises(ValueError, match=r"maps of 2 prompts, so there is none of prompt 2.*map_prompts"):
        plot_attention_maps(states, 2)
    with pytest.raises(ValueError, match=r"no attention map to draw.*attention_sinks"):
        plot_attention_maps({state: measure([]) for state in states})


def test_a_head_without_one_of_its_maps_is_said(inside):
    del inside["maps"]["1.1"]["task-control"]
    with pytest.raises(ValueError, match=r"Head 1.1 has no map of the state 'task-control'"):
        plot_attention_maps(inside["maps"])


def test_interventions_stand_beside_their_controls(ablations):
    _, axis = plot_interventions(Results.from_dict(ablations))
    (points,) = [x for x in axis.get_lines() if x.get_color() == TASK and x.get_marker() == "o"]
    assert points.get_xydata().tolist() == [[12 / 40, 0], [30 / 40, 1]]
    controls = [c for c in axis.collections if c.get_label() == "its controls"]
    assert [s.tolist() for s in controls[0].get_segments()] == [[[33 / 40, 0], [35 / 40, 0]]]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["qk", "mlp"]
    with pytest.raises(ValueError, match="no intervention to draw"):
        plot_interventions(Results.from_dict({**ablations, "points": []}))


def matplotlib_hex(patch):
    from matplotlib.colors import to_hex

    return to_hex(patch.get_facecolor())
