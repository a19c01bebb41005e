"""Whether to compile the layers (CausalLM.compile_layers): it costs seconds once, and saves a part of all later ones.

Measured with Llama-3.1-8B shapes on H200s (scripts/README.md): the first two tokens come 20 s later, or 7 to 11 s where
the compiler finds its own files of an earlier process. After that a decode step takes 4.5 ms less, as a layer has fewer
kernels, and 65,536 tokens are read 1.4 s sooner. What is saved is taken to grow with the layers, and in reading also with
their width.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from model import ModelConfig

SECONDS_ONCE = 20
SECONDS_PER_STEP = 4.5e-3 / 32  # and layer
SECONDS_PER_TOKEN = 1.4 / 65536 / (32 * 4096)  # that is read; and layer, and number of its width


def choose_compiled(
    asked: bool | None, device: torch.device, dtype: torch.dtype, config: ModelConfig, tokens_read: float, steps: float
) -> bool:
    """What was asked for; where nothing was, whether it pays in a process that does so much, and can be done.

    tokens_read, steps: the tokens that it reads and the decode steps that it takes, about
    """
    if asked is not None:
        return asked
    measured = device.type == "cuda" and str(dtype) == "torch.bfloat16"  # other cards and dtypes stay as they are
    return measured and compiling_pays(config, tokens_read, steps) and compiler_is_there()


def compiling_pays(config: ModelConfig, tokens_read: float, steps: float) -> bool:
    saved_by_step = SECONDS_PER_STEP * config.num_hidden_layers
    saved_by_token = SECONDS_PER_TOKEN * config.num_hidden_layers * config.hidden_size
    return saved_by_step * steps + saved_by_token * tokens_read > SECONDS_ONCE


def compiler_is_there() -> bool:
    """Whether there is what torch.compile needs on CUDA: triton, which needs a C compiler and Python's headers."""
    compilers = [named] if (named := os.environ.get("CC")) else ["gcc", "clang"]
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return find_spec("triton") is not None and any(map(shutil.which, compilers)) and headers.exists()
