from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tomfisher.evaluate.statistics import holm, sign_flip_test, wilson_interval
from tomfisher.results.analysis import chosen_kappa
from tomfisher.results.frontier import criteria_table, frontier_table
from tomfisher.results.held_out import HeldOut
from tomfisher.results.power import smallest_p, too_few
from tomfisher.results.results import Results
from tomfisher.results.row import rows_of
from tomfisher.results.rule import PAPER, Rule
from tomfisher.results.verdict import judge

N = 160


def point(mask, kappa, accuracy, p=None, perplexity=10.0, seed=None, nnz=10, **rule):
    low, high = wilson_interval(accuracy * N, N)
    score = {"n": N, "accuracy": accuracy, "ci95": [low, high], "p_vs_baseline": p}
    conditions = {"false-belief": score, "all": score}
    state = {"kappa": kappa, "mask": mask, "seed": seed, "nnz": nnz, "perplexity": perplexity, **rule}
    return rows_of({**state, "conditions": conditions})


def study(hit, control=0.9, randoms=(0.9, 0.92), baseline=0.9, p=1e-6, perplexity=10.0, more=()):
    states = [
        point("none", 0.0, baseline),
        point("task-control", 1e-4, hit, p, perplexity),
        point("control-only", 1e-4, control, 0.5),
        *(point("random", 1e-4, value, 0.5, seed=i) for i, value in enumerate(randoms)),
        *more,
    ]
    provenance = {"evaluation": {"chance": {"false-belief": 0.5}}}
    return Results(tuple(row for rows in states for row in rows), provenance)


def changed(results, **fields):
    """The same with other fields in the baseline's headline row."""
    first, *others = results.rows
    return Results((replace(first, **fields), *others), results.provenance)


def test_a_clean_effect_is_found_and_told_with_its_numbers():
    verdict = judge(study(hit=0.3, perplexity=10.2))
    assert verdict.found and verdict.kappa == 1e-4
    text = str(verdict)
    assert "above chance (0.500)" in text
    assert "0.900 to 0.300" in text and "0.900 or more" in text and "+2.0%" in text
    assert "(p = 1e-06: exact sign-flip test over clusters, Holm)" in text and "(n = 160, 95 %" in text


def test_controls_that_all_agree_are_told_without_or_more():
    text = str(judge(study(hit=0.3, baseline=1.0, control=1.0, randoms=(1.0, 1.0))))
    assert "leave it at 1.000; perplexity" in text


def test_the_number_of_scenes_is_said_where_questions_share_them():
    assert "(n = 160 in 80 clusters, 95 %" in str(judge(changed(study(hit=0.3), n_clusters=80)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hit": 0.85, "p": 0.3}, "No significant fall at any kappa; the smallest corrected p is 0.3"),
        ({"hit": 0.95}, "No significant fall"),
        ({"hit": 0.3, "randoms": (0.9, 0.32)}, "a random mask of the same size gives 0.320"),
        ({"hit": 0.3, "control": 0.25}, "a control-only mask of the same size gives 0.250"),
        ({"hit": 0.3, "randoms": ()}, "no random mask was measured there"),
        ({"hit": 0.3, "perplexity": 11.0}, "perplexity changes by +10.0%"),
        ({"hit": 0.3, "perplexity": math.nan}, "perplexity changes by +nan%"),
        (
            {"hit": 0.2, "baseline": 0.52, "randoms": (0.5, 0.5), "control": 0.5},
            "the baseline is not above chance",
        ),
        ({"hit": 0.05, "baseline": 0.3, "randoms": (0.3, 0.3), "control": 0.3}, "below chance (0.500)"),
    ],
)
def test_a_negative_result_says_why(changes, reason):
    verdict = judge(study(**changes))
    assert not verdict.found and verdict.kappa is None
    assert "Not found" in str(verdict) and reason in str(verdict)


def test_a_control_only_mask_of_another_size_is_told_with_it():
    same, other = study(hit=0.3), study(hit=0.3, control=0.25)
    assert "while the control-only mask and 2 random masks of the same size" in str(judge(same))
    resized = [
        Results(tuple(replace(row, nnz=70) if row.mask == "control-only" else row for row in each.rows), {})
        for each in (same, other)
    ]
    assert "while the control-only mask (70 weights) and 2 random masks of the same size" in str(
        judge(resized[0])
    )
    assert "a control-only mask of 70 weights gives 0.250" in str(judge(resized[1]))


@pytest.mark.parametrize(
    ("scenes", "kappas", "best"), [(5, 1, 2 / 32), (6, 1, 2 / 64), (7, 5, 10 / 128), (8, 5, 10 / 256)]
)
def test_the_smallest_p_is_that_of_the_test_itself(scenes, kappas, best):
    p = sign_flip_test([1.0] * scenes, [0.0] * scenes, range(scenes))
    assert holm([p] * kappas)[0] == smallest_p(scenes, kappas) == best
    assert (too_few(scenes, kappas) is None) == (best < 0.05)


def test_too_few_questions_are_no_negative_result():
    verdict = judge(changed(study(hit=0.1, p=0.0625), n=20, n_clusters=5))
    assert not verdict.found and not verdict.enough and "Not found" not in str(verdict)
    assert "Not enough questions to find anything: " in str(verdict)
    assert "p would be 0.062 after Holm" in str(verdict) and "form 5 clusters; at least 6 are needed" in str(
        verdict
    )
    assert judge(study(hit=0.85, p=0.3)).enough


def test_many_kappas_make_a_single_small_p_insignificant():
    alone = study(hit=0.3, p=0.02)
    others = [point("task-control", kappa, 0.9, 1.0) for kappa in (1e-3, 2e-3)]
    assert judge(alone).found
    verdict = judge(study(hit=0.3, p=0.02, more=others))
    assert not verdict.found and "smallest corrected p is 0.06" in str(verdict)


def grid(hit, p=1e-9, randoms=(0.9,), control=0.9, **rule):
    """The states of one mask of another rule, with its controls."""
    controls = [] if control is None else [point("control-only", 1e-4, control, 0.5, **rule)]
    return [
        point("task-control", 1e-4, hit, p, **rule),
        *controls,
        *(point("random", 1e-4, value, 0.5, seed=i, **rule) for i, value in enumerate(randoms)),
    ]


def test_the_best_mask_of_a_grid_is_named_with_its_rule():
    results = study(hit=0.4, perplexity=11.0, more=grid(0.3, control_kappa=1e-3))
    verdict = judge(results)
    assert verdict.found and verdict.rule == Rule(None, 1e-3) and verdict.kappa == 1e-4
    assert "at kappa = 0.0001 (fisher, control 0.001), 10 perturbed" in str(verdict)
    assert chosen_kappa(results) == 1e-4 and judge(study(hit=0.4)).rule == PAPER


def test_one_correction_runs_over_the_whole_grid():
    more = [state for k in range(3) for state in grid(0.85, p=0.5, control_kappa=0.1 * (k + 1))]
    assert judge(study(hit=0.3, p=0.013)).found
    verdict = judge(study(hit=0.3, p=0.013, more=more))
    assert not verdict.found and "No significant fall at any mask; the smallest corrected p is 0.052" in str(
        verdict
    )


@pytest.mark.parametrize(
    ("rule", "controls", "found"),
    [
        ({"criterion": "taylor"}, {}, True),
        ({"criterion": "taylor"}, {"control": None}, False),
        ({"criterion": "taylor"}, {"control": 0.25}, False),
        ({"criterion": "taylor"}, {"randoms": ()}, False),
        ({"criterion": "magnitude"}, {"control": None}, True),  # it reads no texts: there is no such control
        ({"criterion": "magnitude"}, {"control": None, "randoms": (0.28,)}, False),
    ],
)
def test_controls_are_those_of_the_same_rule(rule, controls, found):
    assert judge(study(hit=0.88, p=0.5, more=grid(0.2, **controls, **rule))).found == found


def test_what_was_chosen_on_half_of_the_scenes_is_told():
    held = HeldOut(None, 0.1, 1e-3, 77, 0.02, 5, (1.0, 0.2), 20, 10, 1.0, 0.3, (0.2, 0.5), 0.002, (0.7, 0.8))
    insignificant = replace(held, p=0.2)
    text = str(judge(replace(study(hit=0.3), held_out=held)))
    assert (
        "of 5 masks under +5% perplexity: fisher, control 0.1 at kappa = 0.001 (77 weights, perplexity +2.0%)"
        in text
    )
    assert (
        "(n = 20 in 10 clusters): 1.000 to 0.300, 95 % interval 0.200 to 0.500, p = 0.002; clear of its 2"
        in text
    )
    assert "p = 0.2; clear of its 2" in str(judge(replace(study(hit=0.3), held_out=insignificant)))
    text = str(judge(replace(study(hit=0.85, p=0.3), held_out=replace(held, ci95=(0.2, 0.75)))))
    assert "not clear of its 2 control masks, whose intervals begin at 0.700" in text


def test_a_criterion_is_judged_by_its_smallest_mask_that_holds():
    small = [point("task-control", 1e-5, 0.5, 1e-6, nnz=3, criterion="wanda")]
    small += [
        point(m, 1e-5, 0.9, 0.5, seed=s, criterion="wanda")
        for m, s in (("control-only", None), ("random", 0))
    ]
    results = study(
        hit=0.3, perplexity=11.0, more=[*small, *grid(0.2, criterion="wanda"), *grid(0.1, criterion="ratio")]
    )
    rows = {row[0]: row for row in criteria_table(results).rows}
    assert rows["fisher"][3:] == [
        "none",
        "",
        "",
        "",
        "none",
        "",
        "",
        "",
    ]  # its only mask costs 10 % perplexity
    assert rows["wanda"][3:5] == ["3", "0.500 [0.423, 0.577]"] and rows["wanda"][7:9] == [
        "10",
        "0.200 [0.145, 0.269]",
    ]
    assert rows["ratio"][2] == "1" and rows["ratio"][6] == "0.0001"
    assert len(frontier_table(results).rows) == 1 + 4


def test_the_kappa_with_the_deepest_fall_is_named():
    deeper = [
        point("task-control", 1e-3, 0.1, 1e-9),
        point("control-only", 1e-3, 0.9, 0.5),
        point("random", 1e-3, 0.9, 0.5, seed=0),
    ]
    assert judge(study(hit=0.3, more=deeper)).kappa == 1e-3


def test_without_a_false_belief_condition_all_questions_count():
    results = study(hit=0.3)
    rows = tuple(row for row in results.rows if row.condition == "all")
    assert "all accuracy from 0.900 to 0.300" in str(judge(Results(rows, results.provenance)))


def test_holm_against_hand_computed_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
