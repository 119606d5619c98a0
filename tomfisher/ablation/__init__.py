"""Ablations: parts of a mask, and changes of queries, keys and attention that leave the weights alone."""

from tomfisher.ablation.ablate import ablate
from tomfisher.ablation.frequencies import scale_band, scale_pairs
from tomfisher.ablation.internals import Internals, measure_internals
from tomfisher.ablation.intervene import intervene
from tomfisher.ablation.intervention import Intervention
from tomfisher.ablation.keys import aim_key, rotate_key, scale_key
from tomfisher.ablation.regions import PARTS, restrict
from tomfisher.ablation.results import AblationPoint, Ablations
from tomfisher.ablation.run import ablate_run
from tomfisher.ablation.sink import off_sink
from tomfisher.ablation.spec import DEFAULT, Ablation, combinations, parse, parse_all

__all__ = [
    "DEFAULT",
    "PARTS",
    "Ablation",
    "AblationPoint",
    "Ablations",
    "Internals",
    "Intervention",
    "ablate",
    "ablate_run",
    "aim_key",
    "combinations",
    "intervene",
    "measure_internals",
    "off_sink",
    "parse",
    "parse_all",
    "restrict",
    "rotate_key",
    "scale_band",
    "scale_key",
    "scale_pairs",
]
