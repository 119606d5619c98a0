"""Reports without drawing, for commands that write one on the way to something else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tomfisher.report import pictures

SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


def _without_drawing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "to_svg", lambda figure: SVG)
        patch.setattr(pictures, "to_png", lambda figure: b"\x89PNG")
        yield


quick_figures = pytest.fixture(_without_drawing, name="quick_figures")
quick_figures_of_module = pytest.fixture(_without_drawing, scope="module", name="quick_figures_of_module")
