"""What a GGUF file holds, read with the `gguf` package alone: header, tensors, and the parts of a split file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
ALIKE = ("architecture", "name", "basename", "uuid", "file_type", "size_label", "version", "finetune")
NEEDED = ("block_count", "embedding_length")


def named_parts(file: Path) -> list[Path]:
    """The files that a name `NAME-0000i-of-0000n.gguf` speaks of, in order; for any other name, the file alone."""
    match = _PART.fullmatch(file.stem)
    if match is None or int(match[3]) == 0:
        return [file]
    return [
        file.with_name(f"{match[1]}-{i + 1:05d}-of-{match[3]}{file.suffix}") for i in range(int(match[3]))
    ]


def parts_of(file: Path) -> list[Path]:
    """All files of the model that a GGUF file is, or is a part of, in order, complete.

    Parts are held to their numbers, to the number of tensors in all, and to what both say of the model (`general.*`).
    Most writers describe the model in the first part alone: nothing in such files tells a later part of another
    model with the same names and shapes.

    Args:
        file: a whole file, or any part `NAME-0000i-of-0000n.gguf` of a split one.

    Raises:
        ValueError: no GGUF file; a part is absent or of another model; no description of a model in it.
    """
    reader = open_gguf(file)
    number, count = _split(reader)
    parts = [file] if count <= 1 else _siblings(file, number, count)
    readers = [reader if part == file else open_gguf(part) for part in parts]
    if count > 1:
        _check_parts(parts, readers)
    _check_described(readers[0], file)
    return parts


def open_gguf(file: Path) -> Any:
    """A `gguf.GGUFReader`.

    Raises:
        ValueError: it is no GGUF file, or a damaged one.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(str(file))
    except Exception as error:  # of many classes: the reader checks little
        raise ValueError(
            f"{file.name} is damaged or no GGUF file ({type(error).__name__}: {error}). Fetch it again."
        ) from error


def tensors_of(parts: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and float32 values of every tensor, unpacked by the `gguf` package, one at a time."""
    from gguf.quants import dequantize

    for part in parts:
        for tensor in open_gguf(part).tensors:
            yield tensor.name, torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)


def merge(parts: list[Path], target: Path) -> None:
    """Write the parts of a split file as one file: the first part's description, every tensor byte for byte."""
    import gguf

    readers = [open_gguf(part) for part in parts]
    writer = gguf.GGUFWriter(
        str(target), arch=_value(readers[0], "general.architecture"), endianess=readers[0].endianess
    )
    for field in readers[0].fields.values():
        if field.name.startswith(("GGUF.", "split.")) or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for t in tensors:
        writer.add_tensor_info(t.name, t.data.shape, t.data.dtype, t.data.nbytes, t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for t in tensors:
        writer.write_tensor_data(t.data)
    writer.close()


def _split(reader: Any) -> tuple[int, int]:
    """Number of a part, from 0, and how many there are; 0 and 1 of a whole file."""
    return int(_value(reader, "split.no") or 0), int(_value(reader, "split.count") or 1)


def _siblings(file: Path, number: int, count: int) -> list[Path]:
    parts = named_parts(file)
    if len(parts) != count or parts[number] != file:
        raise ValueError(
            f"{file.name} is part {number + 1} of {count} of a split GGUF file, and its name does not say so. Name the "
            f"parts NAME-00001-of-{count:05d}.gguf and so on, in one folder."
        )
    absent = [part.name for part in parts if not part.is_file()]
    if absent:
        raise ValueError(
            f"{file.name} is part {number + 1} of {count} of a split GGUF file, of which {', '.join(absent[:3])} is "
            "not beside it. Fetch all parts into one folder."
        )
    return parts


def _check_parts(parts: list[Path], readers: list[Any]) -> None:
    """Refuse parts that are not those of one file."""
    for i, (part, reader) in enumerate(zip(parts, readers, strict=True)):
        number, count = _split(reader)
        if (number, count) != (i, len(parts)):
            raise ValueError(
                f"{part.name} says that it is part {number + 1} of {count}: it belongs to another file. Fetch the "
                "parts again."
            )
    for part, reader in zip(parts[1:], readers[1:], strict=True):
        for key in (f"general.{name}" for name in ALIKE):
            here, there = _value(readers[0], key), _value(reader, key)
            if None not in (here, there) and here != there:
                raise ValueError(
                    f"{part.name} is of another model than {parts[0].name}: its {key} is {there!r}, not {here!r}. "
                    "Fetch the parts again."
                )
    names = [tensor.name for reader in readers for tensor in reader.tensors]
    promised = _value(readers[0], "split.tensors.count")
    if len(set(names)) != len(names) or (promised is not None and int(promised) != len(names)):
        raise ValueError(
            f"The {len(parts)} parts of {parts[0].name} hold {len(names)} tensors, {len(set(names))} of them "
            f"different, where it promises {promised}: they are parts of different files. Fetch them again."
        )


def _check_described(reader: Any, file: Path) -> None:
    """Refuse a file that does not say what model it is: transformers would build its default, of 7 billion weights."""
    architecture = _value(reader, "general.architecture")
    needed = [f"{architecture}.{key}" for key in NEEDED] if architecture else ["general.architecture"]
    lacking = [key for key in needed if _value(reader, key) is None]
    if lacking:
        raise ValueError(
            f"{file.name} does not say what model it holds ({', '.join(lacking)} is not in its header): it is a part "
            "of a split file, an adapter, or a projector. Give the model's own GGUF file, or the first part of it."
        )


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
