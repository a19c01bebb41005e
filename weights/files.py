"""What a checkpoint folder consists of, and how its JSON files are read.

Knows file names; knows nothing of what the files mean, nor where the folder came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.errors import InputError

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "wim.json",
]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. Raises InputError when it cannot be read or is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that the folder is a checkpoint.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; the file is damaged, download it again.") from None


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} for an absent file that is optional. Raises InputError for anything else."""
    if optional and not path.exists():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
        raise InputError(f"{path} is not JSON ({error}); the file is damaged, download it again.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object but holds a {type(value).__name__}; download it again.")
    return value


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up the weights: the shards of the index, else the single file.

    The files need not be there yet. Raises InputError for an index that is damaged or points out of the folder.
    """
    # With both there, the single file wins, as in transformers.
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return [SINGLE]
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{folder / INDEX} has no 'weight_map' of tensor names to file names; download it again.")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / INDEX} names the shard {name!r}, which is not a .safetensors file of its own folder; "
                "do not trust this checkpoint."
            )
    return names
