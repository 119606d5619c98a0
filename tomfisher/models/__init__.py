"""Getting a model and its tokenizer, from wherever they are."""

from tomfisher.models.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
