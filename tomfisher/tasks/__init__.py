"""Tasks: stories with questions, texts, and how both become samples."""

from tomfisher.tasks import corpus, formats
from tomfisher.tasks.encode import encode
from tomfisher.tasks.registry import available, load
from tomfisher.tasks.story import Story

__all__ = ["Story", "available", "corpus", "encode", "formats", "load"]
