from __future__ import annotations

from collections.abc import Iterator

import pytest

from tomfisher.ops import dispatch


@pytest.fixture(scope="module", params=[n for n in dispatch.IMPLEMENTATIONS if not n.startswith("triton")])
def on_cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module once with each implementation that the CPU may have; the definition runs where it is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dispatch._PREFERRED, "cpu", (request.param, "reference"))
        yield request.param
