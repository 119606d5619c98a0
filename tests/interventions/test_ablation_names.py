from __future__ import annotations

import pytest

from tomfisher.interventions import OffSink, RotateKey, ScaleBand, combinations, parse, parse_all
from tomfisher.studies.ablate_run import DEFAULT


@pytest.mark.parametrize(
    "name",
    [
        *DEFAULT,
        "not-qk",
        "mixer",
        "scale-pairs:3.7:0.5",
        "scale-band:fast:0.5:q",
        "scale-pairs:0:0.5:k@1",
        "rotate-key:30",
        "off-sink:0.1:3@2",
        "aim-key:-0.25",
        "scale-key:2@3",
        "off-sink:0@0.3/5.1",
        "dominant-rows+off-sink:0.1",
        "qk+mlp+rotate-key:30@1+off-sink:0.125",
    ],
)
def test_names_are_read_back(name):
    assert parse(name).name == name


def test_what_a_name_means():
    found = parse("dominant-rows + scale-band:slow:0.5 + off-sink:1e-1@2/0.3")
    assert found.parts == ("dominant-rows",)
    assert found.interventions == (ScaleBand("slow", 0.5), OffSink(0.1, at=[2, (0, 3)]))
    assert parse("scale-band:fast:2:k").interventions == (ScaleBand("fast", 2, parts=["k"]),)
    assert parse("off-sink:0.1:3").interventions == (OffSink(0.1, position=3),)
    assert parse("off-sink:0.1:0") == parse("off-sink:0.1")
    assert parse("rotate-key:30.0") == parse("rotate-key:30")
    assert parse("rotate-key:30").interventions == (RotateKey(30),)


def test_combinations_are_all_subsets_up_to_the_size_and_none_twice():
    single = parse_all(["qk", "vo", "off-sink:0.1", "qk"])
    names = ["qk", "vo", "off-sink:0.1", "qk+vo", "qk+off-sink:0.1", "vo+off-sink:0.1", "qk+vo+off-sink:0.1"]
    assert [a.name for a in combinations(single, 1)] == names[:3]
    assert [a.name for a in combinations(single, 2)] == names[:6]
    assert [a.name for a in combinations(single, 5)] == names
    overlapping = parse_all(["full", "qk", "qk+off-sink:0.1", "off-sink:0.1"])
    assert [a.name for a in combinations(overlapping, 2)] == [
        "full",
        "qk",
        "qk+off-sink:0.1",
        "off-sink:0.1",
        "full+off-sink:0.1",
    ]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ("qk,dominant-rows", ""),
        ("qk,not-vo,mlp", "qk+mlp"),
        ("not-qk,mlp", ""),
        ("not-dominant-rows,other-rows", ""),
        ("not-dominant-rows,qk", "not-dominant-rows+qk"),
        ("dominant-rows,other-rows", "dominant-rows+other-rows"),
        ("qk,dominant-rows,other-rows", ""),
        ("dominant-rows+off-sink:0.1,qk", ""),
        ("dominant-rows,mlp,off-sink:0.1", "dominant-rows+mlp,dominant-rows+off-sink:0.1,mlp+off-sink:0.1"),
    ],
)
def test_a_combination_that_is_one_of_its_parts_or_another_ablation_is_passed_over(names, kept):
    single = parse_all(names.split(","))
    found = [a.name for a in combinations(single, 2)]
    assert found == [a.name for a in single] + [name for name in kept.split(",") if name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of-sink:0.1", "Unknown ablation 'of-sink:0.1'. Did you mean 'off-sink'?"),
        ("xyz", "Unknown ablation 'xyz'. Ablations: full, qk"),
        ("", "Unknown ablation ''"),
        ("off-sink", "must look like off-sink:FACTOR"),
        ("off-sink:a", "must look like off-sink:FACTOR"),
        ("off-sink:2", "factor must lie from 0 to 1"),
        ("scale-band", "must look like scale-band:BAND:FACTOR"),
        ("scale-band:slow", "must look like scale-band:BAND:FACTOR"),
        ("scale-band:slow:1:v", "must look like scale-band:BAND:FACTOR"),
        ("scale-band:slow:1:q:k", "must look like scale-band:BAND:FACTOR"),
        ("rotate-key:30:a", "must look like rotate-key:DEGREES"),
        ("rotate-key:30:1:2", "must look like rotate-key:DEGREES"),
        ("rotate-key:30:-1", "position must be 0"),
        ("scale-band:low:1", "band must be one of slow"),
        ("scale-pairs:a:1", "must look like scale-pairs"),
        ("scale-pairs", "must look like scale-pairs"),
        ("rotate-key:30@x", "followed by @LAYER or @LAYER.HEAD"),
        ("rotate-key:30@1.2.3", "followed by @LAYER or @LAYER.HEAD"),
        ("qk@1", "Unknown ablation 'qk@1'"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError) as caught:
        parse(name)
    assert message in str(caught.value)


def test_nothing_to_do():
    with pytest.raises(ValueError, match="nothing to ablate"):
        parse_all([])
    with pytest.raises(ValueError, match="combine must be at least 1"):
        combinations(parse_all(["qk"]), 0)
