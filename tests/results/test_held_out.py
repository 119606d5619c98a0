"""A mask is chosen on one half of the scenes and tested on the other."""

from __future__ import annotations

import json
from dataclasses import replace

from tomfisher.evaluate.statistics import sign_flip_test
from tomfisher.results.held_out import Candidate, HeldOut, hold_out
from tomfisher.results.rule import PAPER, Rule

BOTH = ("control-only", "random")
SCENES = [f"scene{i}" for i in range(20)]


def answers(wrong=()):
    return {f"{scene}/{q}": (float(scene not in wrong), scene) for scene in SCENES for q in (0, 1)}


def halves():
    """The scenes of either half, found from outside: a candidate wrong on one scene is better only on its half."""
    first = []
    for scene in SCENES:
        held = hold_out(answers(), [Candidate(PAPER, 0.1, 5, 0.0, answers([scene]), (), ())], 0.05)
        (first if held.chosen[1] < 1 else []).append(scene)
    return first, [scene for scene in SCENES if scene not in first]


def test_halves_are_equal_and_do_not_depend_on_the_order():
    first, second = halves()
    assert len(first) == len(second) == 10
    held = hold_out(
        dict(reversed(answers().items())), [Candidate(PAPER, 0.1, 5, 0.0, answers(first), (), ())], 0.05
    )
    assert held.chosen == (1.0, 0.0) and (held.after, held.n, held.n_clusters) == (1.0, 20, 10)


def test_what_is_best_on_the_first_half_is_told_of_the_second():
    first, second = halves()
    good, lucky = answers(SCENES[:16]), answers([*first, *second[:1]])
    masks = [
        Candidate(Rule(None, 0.3), 0.01, 50, 0.01, good, (answers(), answers()), BOTH),
        Candidate(PAPER, 0.02, 90, 0.01, lucky, (answers(), answers()), BOTH),
        Candidate(PAPER, 0.03, 10, 0.06, answers(SCENES), (), ()),  # beyond the limit
    ]
    held = hold_out(answers(), masks, 0.05)
    assert (held.rule, held.kappa, held.candidates, held.chosen[1]) == (PAPER, 0.02, 2, 0.0)
    assert held.after == 0.9 and not held.holds  # one scene of ten: luck does not come over
    only = hold_out(answers(), masks[:1], 0.05)
    assert only.holds and only.p == sign_flip_test(
        [1.0] * 20, [good[f"{s}/{q}"][0] for s in second for q in (0, 1)], [s for s in second for _ in (0, 1)]
    )
    assert not replace(only, kinds=("control-only",) * 2).holds  # no random mask was measured
    assert not replace(only, kinds=("random",) * 2).holds and replace(only, criterion="magnitude").holds
    assert HeldOut.from_dict(json.loads(json.dumps(only.to_dict()))) == only


def test_of_equal_masks_the_smaller_is_chosen_and_controls_are_needed():
    one, two = (Candidate(PAPER, k, n, 0.0, answers(SCENES), (), ()) for k, n in ((0.1, 9), (0.2, 3)))
    held = hold_out(answers(), [one, two], 0.05)
    assert held.nnz == 3 and held.p < 0.05 and not held.holds
    assert hold_out(answers(), [one._replace(rise=0.05)], 0.05) is None
