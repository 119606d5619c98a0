from __future__ import annotations

from collections.abc import Iterator

import pytest

from tomfisher.ops import dispatch


@pytest.fixture(scope="module", params=["reference", "auto"])
def on_cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module once with the definition and once with what the CPU prefers (the C++ extension if built)."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setitem(dispatch._PREFERRED, "cpu", ("reference",))
        yield request.param
