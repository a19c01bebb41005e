"""What a checkpoint folder consists of, and how its JSON files are read.

This module knows file names. It knows neither what the files mean nor where the folder came from.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from model.errors import InputError, reason, shown

ADAPTER = "adapter_config.json"
# Where some vendors say how they quantised the weights, beside config.json.
QUANTISATION_FILES = ["quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json"]
SMALL_FILES = [
    "config.json",
    ADAPTER,
    *QUANTISATION_FILES,
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
GGUF, GGUF_IS_NOT_READ = ".gguf", "which is not read here; take the checkpoint's safetensors files."
LFS_POINTER = b"version https://git-lfs."


def is_there(path: Path) -> bool:
    """Whether there is such a file. Raises InputError for a link that leads nowhere, and for what is no file."""
    try:
        there, leads_nowhere = path.exists(), path.is_symlink() and not path.exists()
    except (OSError, ValueError):  # no file can have this name
        return False
    if leads_nowhere:
        raise InputError(
            f"{path} is a link to {path.readlink()}, which is not there; copy what the links of a hub snapshot point to as "
            "well (cp -rL), or download the checkpoint again."
        )
    if there and not path.is_file():  # a folder; or a pipe, which would be waited for
        raise InputError(f"{path} is no file; check that the folder is a checkpoint.")
    return there


def read_bytes(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, at most so many. Raises InputError when it cannot be read, or only points to the file."""
    try:
        with path.open("rb") as file:
            data = file.read(most)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that the folder is a checkpoint.") from None
    if data.startswith(LFS_POINTER):
        raise InputError(f"{path} is only a Git LFS pointer; fetch the file itself (git lfs pull).")
    return data


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. Raises InputError as `read_bytes`, and when it is not text."""
    try:
        return io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8").read()  # with "\n" at the ends of lines
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; the file is damaged, download it again.") from None


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in a file; {} for an absent file that is optional. Raises InputError for anything else."""
    if optional and not is_there(path):
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
        raise InputError(f"{path} is not JSON ({reason(error)}); the file is damaged, download it again.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object but holds a {type(value).__name__}; download it again.")
    return value


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up the weights: the shards of the index, else the single file.

    The files need not be there yet. Raises InputError for an index that is damaged or points out of the folder, and
    for links that lead nowhere.
    """
    # With both there, the single file wins, as in transformers.
    if is_there(folder / SINGLE) or not is_there(folder / INDEX):
        return [SINGLE]
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{folder / INDEX} has no 'weight_map' of tensor names to file names; download it again.")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(
                f"{folder / INDEX} names the shard {shown(name)}, which is not a .safetensors file of its own folder; "
                "do not trust this checkpoint."
            )
    return names
