"""Whether to compile: what was measured decides as it was measured, and only where there is a compiler."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from cli import compiling  # noqa: E402
from cli.compiling import choose_compiled, compiling_pays  # noqa: E402

CUDA, CPU = SimpleNamespace(type="cuda"), SimpleNamespace(type="cpu")
LLAMA_8B = SimpleNamespace(num_hidden_layers=32, hidden_size=4096)
SMALL = SimpleNamespace(num_hidden_layers=16, hidden_size=1024)
MUCH, LITTLE = (40 * 65536, 40 * 150), (65536, 150)


def test_one_document_is_not_enough_and_many_are():
    assert not compiling_pays(LLAMA_8B, *LITTLE)
    assert compiling_pays(LLAMA_8B, 10 * 65536, 10 * 150)  # the table of scripts/README.md: from the tenth on
    assert compiling_pays(LLAMA_8B, 0, 4500) and not compiling_pays(LLAMA_8B, 0, 4400)
    assert not compiling_pays(SMALL, 10 * 65536, 10 * 150)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "work", "there", "chosen"),
    [
        (None, CUDA, torch.bfloat16, MUCH, True, True),
        (None, CUDA, torch.float32, MUCH, True, False),
        (None, CUDA, torch.bfloat16, LITTLE, True, False),
        (None, CUDA, torch.bfloat16, MUCH, False, False),
        (None, CPU, torch.bfloat16, MUCH, True, False),
        (False, CUDA, torch.bfloat16, MUCH, True, False),
        (True, CUDA, torch.bfloat16, LITTLE, False, True),
    ],
)
def test_what_is_asked_for_is_done_and_the_rest_decided(asked, device, dtype, work, there, chosen, monkeypatch):
    monkeypatch.setattr(compiling, "compiler_is_there", lambda: there)
    assert choose_compiled(asked, device, dtype, LLAMA_8B, *work) is chosen


def test_there_is_no_compiler_without_one_for_c(monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name if name == "my-cc" else None)
    headers = compiling.sysconfig.get_path("include", "posix_prefix")
    monkeypatch.delenv("CC", raising=False)
    assert not compiling.compiler_is_there()
    monkeypatch.setenv("CC", "my-cc")
    assert compiling.compiler_is_there() is Path(headers, "Python.h").exists()
