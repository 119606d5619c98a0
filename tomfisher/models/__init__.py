"""Getting a model and its tokenizer, from wherever they are, and knowing what it is built of."""

from tomfisher.models.families import Architecture, UnsupportedModel, describe
from tomfisher.models.load import LoadedModel, load_model

__all__ = ["Architecture", "LoadedModel", "UnsupportedModel", "describe", "load_model"]
