"""From safetensors files into the parameters of a model, one tensor at a time.

Knows tensor names and shapes, and no architecture: what a model needs is read off the model. Pickle files are not read at
all, because loading one can run any code that its author put in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model.errors import InputError
from weights.files import INDEX, SINGLE, weight_files

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of an element
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS_POINTER = b"version https://git-lfs."
# Old checkpoints store the rotary frequencies, which follow from the configuration.
DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: "BF16", "F32", ...

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * FLOATS[self.dtype]


@torch.no_grad()
def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Give every parameter of `model` its values from `folder`, on `device`, in `dtype`.

    model: its parameters may be on the meta device; they are replaced. Those that are shared (tied) stay shared, unless
        they are stored with different values: then each gets its own, as in transformers 5
    progress: called after each tensor with the bytes read so far, and with all there are to read
    Raises InputError, before any tensor is read, for files that are absent, damaged or not safetensors, and for tensors
    that are missing, unexpected or of another shape.

    One tensor is in flight at a time, so the peak is the model plus its largest tensor.
    """
    stored = read_headers(Path(folder))
    sources = _match(model, stored, Path(folder))
    by_file: dict[Path, list[str]] = {}
    for name in sources:
        by_file.setdefault(stored[name].file, []).append(name)

    total, done = sum(stored[name].bytes for name in sources), 0
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                # A copy, since what safetensors hands out on the CPU is the file itself, mapped into memory.
                value = torch.empty(stored[name].shape, dtype=dtype, device=device)
                value.copy_(tensors.get_tensor(name))
                _assign(model, sources[name], nn.Parameter(value, requires_grad=False))
                done += stored[name].bytes
                if progress is not None:
                    progress(done, total)
    for name, names in sources.items():
        for other in names:
            if other in stored and other != name:
                with safe_open(stored[other].file, framework="pt") as tensors:
                    value = tensors.get_tensor(other).to(device, dtype, copy=True)
                if not torch.equal(value, model.get_parameter(name)):
                    _assign(model, [other], nn.Parameter(value, requires_grad=False))


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor that the checkpoint stores, by name, from the headers alone. Raises InputError as `load_weights`."""
    stored: dict[str, Stored] = {}
    for name in weight_files(folder):
        file = folder / name
        if not file.exists():
            raise InputError(_absent(folder, name))
        try:
            with file.open("rb") as start:
                is_pointer = start.read(len(LFS_POINTER)) == LFS_POINTER
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); check that it is a readable file.") from None
        if is_pointer:
            raise InputError(f"{file} is only a Git LFS pointer; fetch the file itself (git lfs pull).")
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    view = tensors.get_slice(key)
                    stored[key] = Stored(file, tuple(view.get_shape()), view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is cut short or damaged ({error}); download it again.") from None
    return stored


def _absent(folder: Path, name: str) -> str:
    """What to say when a weight file is not there."""
    if (folder / INDEX).exists() and name != SINGLE:
        return f"{folder / INDEX} names {name}, which is not in the folder; download the checkpoint again."
    found = sorted(path.name for path in folder.iterdir())
    pickles = [file for file in found if file.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} holds weights as {pickles[0]}, a pickle, which can run code when it is loaded and is not read "
            "here; take a revision with safetensors files, or convert it."
        )
    others = [file for file in found if file.endswith(".safetensors")]
    if others:
        return f"{folder} has {_some(others)} but no {SINGLE} and no {INDEX}; rename the file, or add its index."
    return (
        f"{folder} has no {SINGLE} and no {INDEX}; if it is complete, its weights are not published as safetensors: "
        "pickle files (.bin) can run code when they are loaded and are not read here."
    )


def _match(model: nn.Module, stored: dict[str, Stored], folder: Path) -> dict[str, list[str]]:
    """Which parameters each stored tensor goes to: {stored name: [parameter names that share it]}."""
    shared: dict[int, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)

    sources: dict[str, list[str]] = {}
    missing: list[str] = []
    for names in shared.values():
        # Of tied tensors one is enough.
        source = next((name for name in names if name in stored), None)
        if source is None:
            missing.append(names[0])
        else:
            sources[source] = names
    unexpected = [name for name in stored if name not in shapes and not DERIVED.search(name)]
    wanted = [name for names in sources.values() for name in names if name in stored]
    misshapen = [
        f"{name} (the file has {list(stored[name].shape)}, config.json asks for {list(shapes[name])})"
        for name in wanted
        if stored[name].shape != shapes[name]
    ]
    not_floats = [f"{name} ({stored[name].dtype})" for name in wanted if stored[name].dtype not in FLOATS]

    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("tensors of another shape", misshapen),
            ("tensors that are not floating point", not_floats),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"The weights in {folder} do not fit its config.json: {'; '.join(problems)}. "
            "Download both files again, from one revision; quantised weights are not supported."
        )
    return sources


def _assign(model: nn.Module, names: Iterable[str], parameter: nn.Parameter) -> None:
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, parameter)


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, ... and {len(names) - most} more" if len(names) > most else shown
