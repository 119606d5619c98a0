"""Interventions: changes to queries, keys and attention scores while a block runs, and parts of a mask."""

from tomfisher.interventions.ablation import INTERVENTIONS, Ablation, combinations, parse, parse_all
from tomfisher.interventions.base import Intervention, Target
from tomfisher.interventions.frequencies import ScaleBand, ScalePairs
from tomfisher.interventions.internals import Internals, measure_internals
from tomfisher.interventions.intervene import intervene
from tomfisher.interventions.keys import AimKey, RotateKey, ScaleKey
from tomfisher.interventions.parts import PARTS, restrict
from tomfisher.interventions.sink import OffSink

__all__ = [
    "INTERVENTIONS",
    "PARTS",
    "Ablation",
    "AimKey",
    "Internals",
    "Intervention",
    "OffSink",
    "RotateKey",
    "ScaleBand",
    "ScaleKey",
    "ScalePairs",
    "Target",
    "combinations",
    "intervene",
    "measure_internals",
    "parse",
    "parse_all",
    "restrict",
]
