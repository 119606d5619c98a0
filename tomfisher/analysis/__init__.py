"""What happens inside a model: rotary frequencies, attention sinks, and where a mask lies."""

from tomfisher.analysis.analyze import Analysis, analyze
from tomfisher.analysis.change import HeadChange, PairChange, SinkChange, SpectrumChange, compare
from tomfisher.analysis.enrichment import Enrichment, RowTest
from tomfisher.analysis.interaction import Interaction, interaction, interactions
from tomfisher.analysis.low_rank import effective_rank
from tomfisher.analysis.overlap import Overlap, overlap
from tomfisher.analysis.profile import MaskProfile, mask_profile
from tomfisher.analysis.rope import LayerSpectrum, RopeSpectrum, bands, rope_spectrum
from tomfisher.analysis.sinks import AttentionSinks, LayerSinks, attention_sinks

__all__ = [
    "Analysis",
    "AttentionSinks",
    "Enrichment",
    "HeadChange",
    "Interaction",
    "LayerSinks",
    "LayerSpectrum",
    "MaskProfile",
    "Overlap",
    "PairChange",
    "RopeSpectrum",
    "RowTest",
    "SinkChange",
    "SpectrumChange",
    "analyze",
    "attention_sinks",
    "bands",
    "compare",
    "effective_rank",
    "interaction",
    "interactions",
    "mask_profile",
    "overlap",
    "rope_spectrum",
]
