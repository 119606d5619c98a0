"""A small false-belief language, a Llama trained on it from scratch, and the trained weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_FOLDERS = {"testbed-llama": "llama"}

__all__ = ["shipped"]


def shipped(name: str = "testbed-llama") -> Path:
    """Folder of a trained testbed model that comes with the package.

    Args:
        name: "testbed-llama".

    Returns:
        A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, with
        `training.json` beside the weights.

    Raises:
        ValueError: no model of that name is shipped.
        FileNotFoundError: the installed package lacks the folder.
    """
    if name not in _FOLDERS:
        raise ValueError(f"No testbed model is called {name!r}; choose from {', '.join(_FOLDERS)}.")
    folder = Path(str(resources.files("tomfisher.testbed"))) / "data" / _FOLDERS[name]
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The package holds no weights of {name} ({folder} is missing). Reinstall tomfisher, or train them: "
            "tomfisher testbed train"
        )
    return folder
