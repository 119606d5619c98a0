"""Stories and texts from files: records of prompt, choices and answer, the paper's formats, published data sets."""

from tomfisher.tasks.formats.plain import read_stories, read_texts, text_of
from tomfisher.tasks.formats.published import FORMATS, format_of, read_published

__all__ = ["FORMATS", "format_of", "read_published", "read_stories", "read_texts", "text_of"]
