"""From safetensors files into the parameters of a model, one tensor at a time, each by several threads.

This module knows tensor names and shapes, and no architecture: what a model needs is read off the model. Pickle files are
not read at all, because loading one can run any code that its author put in.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from model.errors import InputError, reason, shown
from model.int8 import Int8Linear
from weights.files import ADAPTER, GGUF, GGUF_IS_NOT_READ, INDEX, LFS_POINTER, SINGLE, is_there, read_bytes, weight_files

if TYPE_CHECKING:
    from model.parallel import Cut

# Told (bytes read so far, bytes in all) as weights come in.
Progress = Callable[[int, int], None]
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READERS = 4  # threads; one does not read as fast as a disk, or the system's cache of it, can give
PIECE = 4 * 2**20  # bytes that a thread reads at a time
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
# How quantised weights look: the names of what belongs to them, and the kinds of number they are stored in.
QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|weight_(packed|scale\w*|shape|format)|(weight\.)?(quant_state|absmax)\S*)$"
)
# Old checkpoints store the rotary frequencies, which follow from the configuration.
DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header describes it."""

    file: Path
    start: int  # of its first byte in the file
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: "BF16", "F32", ...

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * FLOATS[self.dtype].itemsize

    def spans(self, cut: Cut | None) -> Iterator[tuple[int, int]]:
        """Where the part stands in the file: [first, end) of elements that follow each other, in the part's own order."""
        if cut is None:
            yield 0, torch.Size(self.shape).numel()
            return
        inner = torch.Size(self.shape[cut.dim + 1 :]).numel()
        for outer in range(torch.Size(self.shape[: cut.dim]).numel()):
            for part in cut.ranges:
                yield (outer * cut.size + part.start) * inner, (outer * cut.size + part.stop) * inner


@torch.inference_mode(False)  # which other threads would not share
@torch.no_grad()
def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    progress: Progress | None = None,
    cuts: Mapping[str, Cut] | None = None,
) -> None:
    """Give every parameter of `model` its values from `folder`, where it stands and in its dtype.

    model: parameters that are shared (tied) stay shared, unless they are stored with different values: then each gets its
        own, as in transformers 5. The weight of an Int8Linear is quantised when it has been read, on its device, in the
        dtype that it is stored in; so only one matrix at a time is there as floats
    progress: told (bytes read, bytes in all) at the start and after each tensor
    cuts: which part of a tensor the parameter of that name takes (model/parallel.py), where not all; no more is read
    Raises InputError, before any tensor is read, for files that are absent, damaged or not safetensors, and for tensors
    that are missing, unexpected or of another shape.

    Values are read into their places, through a few small buffers where device or dtype differ, so what is taken beside the
    model are READERS * PIECE bytes; tied tensors that are stored twice take one more.
    """
    stored = read_headers(Path(folder))
    cuts = cuts or {}
    sources = _match(model, stored, Path(folder), cuts)
    read, total = 0, sum(stored[name].bytes for name in sources)
    report = progress or (lambda read, total: None)
    report(0, total)
    with Pieces() as reader:
        for name in sorted(sources, key=lambda name: (stored[name].file, stored[name].start)):
            _read(reader, stored[name], *_owner(model, name), cuts.get(name))
            read += stored[name].bytes
            report(read, total)
        for name, names in sources.items():
            for other in names:
                if other in stored and other != name:
                    own = nn.Parameter(torch.empty_like(model.get_parameter(name)), requires_grad=False)
                    reader.read(stored[other], own, cuts.get(other))
                    if not torch.equal(own, model.get_parameter(name)):
                        setattr(*_owner(model, other), own)


class Pieces:
    """Reads tensors, each in pieces by several threads.

    A file that is mapped into memory, which is what safetensors hands out, comes in page by page, by one thread, and on
    its way to a GPU is copied once more. Here a thread reads a piece into a buffer of its own, page-locked for a GPU, and
    copies it to its place while the others read; on a CPU, where the dtype is that of the file, it reads into the place.
    """

    def __init__(self):
        self.threads = ThreadPoolExecutor(READERS)
        self.own = threading.local()

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown()

    def read(self, stored: Stored, place: torch.Tensor, cut: Cut | None = None) -> None:
        """Read the tensor, or a part of it, into `place`: contiguous, of that shape, of any device and float dtype.

        Raises InputError when the file has become shorter or cannot be read.
        """
        step = PIECE // FLOATS[stored.dtype].itemsize
        places = place.view(-1).split(step)
        for _ in self.threads.map(partial(self._fill, stored), places, pieces(stored.spans(cut), step)):
            pass

    def _fill(self, stored: Stored, place: torch.Tensor, spans: list[tuple[int, int]]) -> None:
        """Read spans of elements into `place`, one after the other."""
        dtype = FLOATS[stored.dtype]
        in_place = place.device.type == "cpu" and place.dtype == dtype
        raw = place.view(torch.uint8) if in_place else self._buffer(place.device)[: len(place) * dtype.itemsize]
        left = memoryview(raw.numpy())
        try:
            with stored.file.open("rb", buffering=0) as file:
                for first, end in spans:
                    file.seek(stored.start + first * dtype.itemsize)
                    span, left = left[: (end - first) * dtype.itemsize], left[(end - first) * dtype.itemsize :]
                    while span:
                        n = file.readinto(span)
                        if not n:
                            raise InputError(f"{stored.file} has become shorter while it was read; load it again.")
                        span = span[n:]
        except OSError as error:
            raise InputError(f"{stored.file} cannot be read ({reason(error)}); check the disk it is on.") from None
        if not in_place:
            place.copy_(raw.view(dtype))

    def _buffer(self, device: torch.device) -> torch.Tensor:
        if not hasattr(self.own, "buffer"):
            self.own.buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=device.type == "cuda")
        return self.own.buffer


def pieces(spans: Iterable[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """The same spans, cut and put together so that each list has `most` elements, but for the last."""
    piece, room = [], most
    for first, end in spans:
        while first < end:
            n = min(end - first, room)
            piece.append((first, first + n))
            first, room = first + n, room - n
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor that the checkpoint stores, by name, from the headers alone. Raises InputError as `load_weights`."""
    stored: dict[str, Stored] = {}
    for name in weight_files(folder):
        file = folder / name
        if not is_there(file):
            raise InputError(_absent(folder, name))
        read_bytes(file, len(LFS_POINTER))  # or a sentence
        try:
            with safe_open(file, framework="pt") as tensors:  # checks the header against the file
                names = tensors.keys()
            with file.open("rb") as start:
                header_bytes = int.from_bytes(start.read(8), "little")
                header = json.loads(start.read(header_bytes))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is cut short or damaged ({reason(error)}); download it again.") from None
        for name in names:
            entry = header[name]
            begin = 8 + header_bytes + entry["data_offsets"][0]
            stored[name] = Stored(file, begin, tuple(entry["shape"]), entry["dtype"])
    return stored


def _absent(folder: Path, name: str) -> str:
    """What to say when a weight file is not there."""
    if (folder / INDEX).exists() and name != SINGLE:
        return f"{folder / INDEX} names {shown(name)}, which is not in the folder; download the checkpoint again."
    found = sorted(path.name for path in folder.iterdir())
    pickles = [file for file in found if file.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} holds weights as {pickles[0]}, a pickle, which can run code when it is loaded and is not read "
            "here; take a revision with safetensors files, or convert it."
        )
    others = [file for file in found if file.endswith(".safetensors")]
    if ADAPTER in found or any(file.startswith("adapter_") for file in others):
        return f"{folder} holds an adapter and no weights of a model; merge it into its base model and give the result."
    if any(file.startswith("consolidated") for file in others):
        return (
            f"{folder} holds {_some(others)}, weights under the names of their authors' own code; take {SINGLE} or its "
            "shards from the same repository."
        )
    if any(SHARD.search(file) for file in others):
        return (
            f"{folder} has the shards {_some(others, 2)} but no {INDEX}, which says what is in them; download the "
            "checkpoint again, with its index."
        )
    if others:
        return f"{folder} has {_some(others)} but no {SINGLE} and no {INDEX}; rename the file, or add its index."
    gguf = [file for file in found if file.endswith(GGUF)]
    if gguf:
        return f"{folder} holds weights as {gguf[0]}, {GGUF_IS_NOT_READ}"
    return (
        f"{folder} has no {SINGLE} and no {INDEX}; if it is complete, its weights are not published as safetensors: "
        "pickle files (.bin) can run code when they are loaded and are not read here."
    )


def _match(model: nn.Module, stored: dict[str, Stored], folder: Path, cuts: Mapping[str, Cut]) -> dict[str, list[str]]:
    """Which parameters each stored tensor goes to: {stored name: [parameter names that share it]}."""
    shared: dict[int, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    made_here = {f"{name}.scale" for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in made_here:
            continue
        shared.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)
        if (cut := cuts.get(name)) is not None:
            shapes[name] = (*shapes[name][: cut.dim], cut.size, *shapes[name][cut.dim + 1 :])

    sources: dict[str, list[str]] = {}
    missing: list[str] = []
    for names in shared.values():
        # Of tied tensors one is enough.
        source = next((name for name in names if name in stored), None)
        if source is None:
            missing.append(names[0])
        else:
            sources[source] = names
    unexpected = [name for name in stored if name not in shapes and name not in cuts and not DERIVED.search(name)]
    wanted = [name for names in sources.values() for name in names if name in stored]
    misshapen = [
        f"{name} (the file has {list(stored[name].shape)}, config.json asks for {list(shapes[name])})"
        for name in wanted
        if stored[name].shape != shapes[name]
    ]
    quantised = [name for name in unexpected if QUANTISED.search(name)]
    quantised += [f"{name} ({stored[name].dtype})" for name in wanted if stored[name].dtype not in FLOATS]
    if quantised:
        raise InputError(
            f"The weights in {folder} are quantised, or no floating-point numbers ({_some(quantised, 2)}), and only float "
            "weights are supported; take the checkpoint that they were made from."
        )

    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing tensors", missing),
            ("unexpected tensors", unexpected),
            ("tensors of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"The weights in {folder} do not fit its config.json: {'; '.join(problems)}. "
            "Download both files again, from one revision."
        )
    return sources


def _read(reader: Pieces, stored: Stored, owner: nn.Module, name: str, cut: Cut | None) -> None:
    place = getattr(owner, name).detach()
    if isinstance(owner, Int8Linear) and name == "weight":
        matrix = torch.empty(place.shape, dtype=FLOATS[stored.dtype], device=place.device)
        reader.read(stored, matrix, cut)
        owner.quantise(matrix)
    else:
        reader.read(stored, place, cut)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter, and the parameter's name there."""
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


def _some(names: list[str], most: int = 3) -> str:
    listed = ", ".join(name if len(name) <= 120 else shown(name) for name in names[:most])
    return f"{listed}, ... and {len(names) - most} more" if len(names) > most else listed
