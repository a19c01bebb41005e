"""What a terminal shows in the end, of all that was written to it."""

from __future__ import annotations

import re

CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|(.)", re.DOTALL)


def shown(text: str) -> list[str]:
    """The lines, without colours. Knows what our output uses: line ends, the cursor up, the rest of a line erased."""
    lines, row, column = [[]], 0, 0
    for code in CONTROL.finditer(text):
        match code[2] or code[3]:
            case "\r":
                column = 0
            case "\n":
                row, column = row + 1, 0
            case "\b":
                column = max(0, column - 1)
            case "A" if code[2]:
                row = max(0, row - int(code[1] or 1))
            case "K" if code[2]:
                del lines[row][column:]
            case "C" if code[2]:
                column += int(code[1] or 1)
            case character if not code[2] and character >= " ":
                lines[row][len(lines[row]) :] = [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = character
                column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]
