"""Taking the run folder of a study: the same study resumes, another one is refused, `overwrite` clears it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tomfisher.files import sha256_of_file
from tomfisher.results.folder import CONFIG, EXTRAS, OWN_FILES, OWN_FOLDERS, RunFolder, listed
from tomfisher.runtime import ranks
from tomfisher.studies.config import HEADER, PERPLEXITY_WINDOW, Config, read_yaml

OF_ANALYSIS = ("analysis_prompts", "analysis_random_masks", "interaction")
FREE = ("output_path", "boundary", "max_memory", *OF_ANALYSIS)  # no result depends on them
AFTER_FISHER = frozenset(  # settings that no Fisher store depends on
    (
        *("eval_dtype", "kappas", "scope", "fill", "compat", "random_seeds", "random_kappas"),
        *("control_kappa", "criterion", "ratio_quantile", "stream", "share_prefix", "batch_size"),
        *("limit", "method", "normalize", "max_new_tokens", "temperature", "top_p", "repetitions"),
        *("perplexity_tokens", "perplexity_window", "perplexity_stride"),
    )
)


@contextlib.contextmanager
def claimed(config: Config, overwrite: bool = False) -> Iterator[RunFolder]:
    """Lock the config's run folder and make sure that it belongs to this config.

    Of several ranks the first one does, and the others read what it writes.

    Args:
        config: the study; everything but `output_path` and the settings of the analysis must equal the folder's
            `config.yaml`.
        overwrite: delete what an earlier study left there (only files that tomfisher writes).

    Yields:
        The folder, with `config.yaml` in it and leftovers of a killed run removed.

    Raises:
        ValueError: another study's folder (the differing settings are named), a folder with other things
            in it, one that another process is working in, or one that some rank does not see.
    """
    team = ranks.current()
    team.agree("the study", config.to_dict())
    if not team.is_first:
        yield _seen(config, team)
        return
    with RunFolder(config.output_path).opened() as folder:
        _claim(folder, config, overwrite)
        folder.remove_leftovers()
        team.exchange("the run folder", _settings_sha256(folder))
        yield folder


def way_of_study(path: str | os.PathLike[str]) -> Literal["auto", "yes", "no"] | None:
    """The `stream` setting of the study that was begun in a folder; None without one that can be read."""
    file = Path(path).expanduser() / CONFIG
    if not file.is_file() or not file.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        return None
    return Config.from_dict(_read_settings(file)).stream


def _seen(config: Config, team: ranks.Team) -> RunFolder:
    """The folder that the first rank has taken, to read from."""
    folder = RunFolder(config.output_path, writes=False)
    written, *_ = team.exchange("the run folder")
    if not (folder.path / CONFIG).is_file() or _settings_sha256(folder) != written:
        raise ValueError(
            f"Rank {team.rank} does not see what rank 0 writes to {folder.path}. Several hosts need a file system that "
            "they share: give an --output_path on it."
        )
    return folder


def _settings_sha256(folder: RunFolder) -> str:
    return sha256_of_file(folder.path / CONFIG)


def _claim(folder: RunFolder, config: Config, overwrite: bool) -> None:
    file = folder.path / CONFIG
    if not file.is_file():
        if foreign := folder.foreign(()):
            raise ValueError(
                f"{folder.path} is not a run folder: it has no config.yaml but holds {', '.join(foreign[:4])}. "
                "Give another --output_path."
            )
        folder.write_text(CONFIG, config.to_yaml())
        return
    _refuse_foreign(file)
    if overwrite or not any((folder.path / name).exists() for name in OWN_FOLDERS):
        # without any of them: an attempt that ended before its first result, by a mistyped model for example
        folder.clear(OWN_FILES, OWN_FOLDERS, EXTRAS)
        folder.write_text(CONFIG, config.to_yaml())  # last, so that a kill on the way loses nothing
        return
    settings = _read_settings(file)
    differing = _differences(settings, config.to_dict())
    if differing:
        raise ValueError(
            f"{folder.path} holds a study with other settings:\n{listed(differing)}\n"
            "Give another --output_path, or --overwrite to delete that study and start again."
            f"{_way_to_keep_stores(folder, differing)}"
        )
    if any(settings[name] != getattr(config, name) for name in OF_ANALYSIS):
        folder.write_text(CONFIG, config.to_yaml())


def _refuse_foreign(file: Path) -> None:
    """A `config.yaml` that is not ours marks somebody else's folder: nothing in it is touched."""
    if not file.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        raise ValueError(
            f"{file} was not written by tomfisher, so the folder is left alone. Give another --output_path."
        )


def _read_settings(file: Path) -> dict[str, Any]:
    """The folder's settings, defaults filled in, so that a config of an older version still compares."""
    try:
        return Config.from_dict(read_yaml(file)).to_dict()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Use --overwrite to start again.") from error


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    differing = {key: (old[key], new[key]) for key in new if key not in FREE and old[key] != new[key]}
    if {old["perplexity_window"], new["perplexity_window"]} == {None, PERPLEXITY_WINDOW}:
        del differing["perplexity_window"]  # the default, and what older versions wrote for it
    return differing


def _way_to_keep_stores(folder: RunFolder, differing: Iterable[str]) -> str:
    """How another study gets at this one's Fisher stores, where it only masks or measures otherwise."""
    if not AFTER_FISHER.issuperset(differing):
        return ""
    stores = {which: folder.store_path(which) for which in ("task", "control")}
    flags = [f"--{which}_store {path}" for which, path in stores.items() if path.is_dir()]
    if not flags:
        return ""
    return (
        "\nThe Fisher stores do not depend on what differs; with another --output_path they are kept and used by "
        f"{' '.join(flags)}"
    )
