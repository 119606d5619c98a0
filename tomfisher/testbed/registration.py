"""The testbed's tasks, control text and models under their names."""

from __future__ import annotations

import functools

from tomfisher import testbed
from tomfisher.models import builtin
from tomfisher.tasks import corpus, registry
from tomfisher.testbed import language

_TITLES = {
    "llama": "Llama (RoPE)",
    "qwen2": "Qwen2 (RoPE, grouped-query attention)",
    "mpt": "MPT (ALiBi)",
    "mamba": "Mamba (no attention)",
    "jamba": "Jamba (attention without positions, Mamba layers)",
}

registry.register(
    "testbed",
    "stories in the small language of the testbed models",
    functools.partial(language.stories, second_order=False),
)
registry.register(
    "testbed2",
    "the same with second-order stories as a third family, for the testbed2 models",
    functools.partial(language.stories, second_order=True),
)
corpus.register("testbed", lambda: language.corpus().documents)
builtin.register(
    "testbed-llama",
    "a small Llama trained from scratch on a false-belief language; ships with tomfisher",
    functools.partial(testbed.shipped, "testbed-llama"),
)
for _name in testbed.ARCHITECTURES:
    builtin.register(
        f"testbed2-{_name}",
        f"a small {_TITLES[_name]} with second-order stories too; ships with tomfisher",
        functools.partial(testbed.shipped, f"testbed2-{_name}"),
    )
