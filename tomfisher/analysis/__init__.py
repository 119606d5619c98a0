"""What happens inside a model: rotary frequencies of queries and keys, and attention sinks."""

from tomfisher.analysis.analyze import Analysis, analyze
from tomfisher.analysis.change import HeadChange, PairChange, SinkChange, SpectrumChange, compare
from tomfisher.analysis.rope import LayerSpectrum, RopeSpectrum, bands, rope_spectrum
from tomfisher.analysis.sinks import AttentionSinks, LayerSinks, attention_sinks

__all__ = [
    "Analysis",
    "AttentionSinks",
    "HeadChange",
    "LayerSinks",
    "LayerSpectrum",
    "PairChange",
    "RopeSpectrum",
    "SinkChange",
    "SpectrumChange",
    "analyze",
    "attention_sinks",
    "bands",
    "compare",
    "rope_spectrum",
]
