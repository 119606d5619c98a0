"""A small false-belief language, models trained on it from scratch, and the trained weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

# of those in tomfisher.testbed.recipe, the ones whose weights are shipped
ARCHITECTURES = ("llama", "qwen2", "mpt", "mamba", "jamba")
_FOLDERS = {"testbed-llama": "llama"} | {f"testbed2-{name}": f"second-order/{name}" for name in ARCHITECTURES}

__all__ = ["ARCHITECTURES", "available", "shipped", "texts_of"]


def available() -> tuple[str, ...]:
    """Names of the shipped models: "testbed-llama", and "testbed2-..." for those that know second-order stories."""
    return tuple(_FOLDERS)


def texts_of(model: str) -> dict[str, str]:
    """The `task` and `control` in whose language a shipped model was trained; nothing for any other model."""
    if model not in _FOLDERS:
        return {}
    return {"task": model.partition("-")[0], "control": "testbed"}


def shipped(name: str = "testbed-llama") -> Path:
    """Folder of a trained testbed model that comes with the package.

    Args:
        name: one of `available()`.

    Returns:
        A folder that `tomfisher.models.load_model` and `AutoModelForCausalLM.from_pretrained` load, with
        `training.json` beside the weights; so does `AutoTokenizer.from_pretrained`, except for Qwen2, where it
        takes that family's own tokenizer class whatever the folder declares.

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
