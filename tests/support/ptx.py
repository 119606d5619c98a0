"""What a loop of compiled PTX does in one pass."""

from __future__ import annotations

import re

_LABEL = re.compile(r"^(\$L__BB\w+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);")
BARRIER = r"bar\.sync"
COMMIT = r"cp\.async\.commit_group"
WAIT = r"cp\.async\.wait_group\s+(?:0x)?(\d+)"


def loop_with(assembly: str, instruction: str) -> list[str]:
    """Lines of the innermost loop, from a label to the last branch back to it, in which an instruction occurs.

    Args:
        assembly: PTX.
        instruction: a regular expression.

    Returns:
        The lines.
    """
    lines = assembly.splitlines()
    labels = {m[1]: number for number, line in enumerate(lines) if (m := _LABEL.match(line.strip()))}
    loops: dict[int, int] = {}
    for number, line in enumerate(lines):
        for target in _BRANCH.findall(line):
            if labels[target] <= number:
                loops[labels[target]] = number
    inside = [
        lines[first : last + 1]
        for first, last in loops.items()
        if any(re.search(instruction, line) for line in lines[first : last + 1])
    ]
    return min(inside, key=len)


def found(lines: list[str], pattern: str) -> list[str]:
    """Every match of a pattern, in order: its group, if it has one."""
    return [match for line in lines for match in re.findall(pattern, line)]
