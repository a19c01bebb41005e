"""Which device to run on, in which dtype, and how much memory it has."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from model.errors import InputError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the first that is there of CUDA, Apple's MPS and the CPU.

    Raises InputError for a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, found in there.items() if found))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not there.get(device.type) or (device.index or 0) >= _count(device.type):
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise InputError(f"The device {name!r} is not there; this machine has: {found}.")
    return device


def own_device(name: str | None, rank: int, size: int) -> torch.device:
    """For process `rank` of the `size` that share a model on this machine: a CUDA card of its own, or the CPU for all.

    name: as for pick_device, without a number
    Raises InputError for another kind of device, and for fewer cards than processes.
    """
    device = pick_device(name)
    if device.type not in ("cuda", "cpu") or device.index is not None:
        raise InputError(f"{size} processes cannot share a model on {device}; give --device cuda or --device cpu.")
    if device.type == "cpu":
        return device
    if size > (n_cards := torch.cuda.device_count()):
        raise InputError(
            f"{size} processes want a card each, and this machine has {n_cards}; start as many as it has, or give "
            "--device cpu."
        )
    return torch.device("cuda", rank)


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named dtype, or bfloat16 where the device computes in it and float32 elsewhere.

    Raises InputError for an unknown name.
    """
    if name is not None:
        if name not in DTYPES:
            raise InputError(f"The dtype {name!r} is unknown; choose one of: {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "mps" else torch.float32


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated on the device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        meminfo = Path("/proc/meminfo").read_text()  # Linux; its "available" counts what the page cache would give back
        return int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE).group(1)) * 1024
    except (OSError, AttributeError):
        return None


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors have taken on the device so far; None where it is not counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def _count(device_type: str) -> int:
    return torch.cuda.device_count() if device_type == "cuda" else 1


def check_compile(compiled: bool, device: torch.device) -> None:
    """Raises InputError where layers should be compiled (CausalLM.compile_layers) on another device than CUDA."""
    if compiled and device.type != "cuda":
        raise InputError(f"--compile is for CUDA, and the device is {device}; leave it out.")
