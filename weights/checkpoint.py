"""A published checkpoint, opened in two steps: first all that is small and can be wrong, then the weights.

So a wrong configuration, a missing template or a budget that does not fit is found before gigabytes are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from model import ModelConfig, build_model
from model.errors import InputError
from weights.config import read_model_config
from weights.files import read_json
from weights.hub import resolve
from weights.safetensors_loader import load_weights
from weights.text.chat import ChatFormat
from weights.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose small files have been read and fit together.

    name, revision: as it was asked for
    folder: where its files are
    """

    name: str
    revision: str | None
    folder: Path
    config: ModelConfig
    tokenizer: Tokenizer
    chat: ChatFormat

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> Checkpoint:
        """Find or download the small files of a checkpoint and read them; see `weights.hub.resolve` for the names.

        Raises InputError for a checkpoint that is absent, damaged, or not supported.
        """
        folder = resolve(name, revision, weights=False)
        if not (folder / "config.json").exists():
            raise InputError(f"{folder} has no config.json, so it is no checkpoint folder; give the one that has it.")
        config = read_model_config(read_json(folder / "config.json"))
        tokenizer = Tokenizer.from_folder(folder)
        chat = ChatFormat.from_folder(folder, tokenizer)
        # Added tokens beyond the embedding do no harm while nothing writes them.
        header, _, closing = chat.prompt_pieces(None)
        largest = max([tokenizer.text_vocab_size - 1, *header, *closing])
        if largest >= config.vocab_size:
            raise InputError(
                f"The tokenizer in {folder} gives ids up to {largest}, but config.json says vocab_size = "
                f"{config.vocab_size}; the two are not of the same checkpoint."
            )
        return cls(name, revision, folder, config, tokenizer, chat)

    def __reduce__(self) -> tuple:
        """Sent to another process, it is opened there anew: a compiled chat template cannot be pickled."""
        return Checkpoint.open, (self.name, self.revision)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the parameters in `dtype`, tied ones counted once. Needs no weight file."""
        return sum(parameter.numel() for parameter in self._skeleton().parameters()) * dtype.itemsize

    def load_model(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        planned_length: int,
        progress: Callable[[int, int], object] | None = None,
    ) -> nn.Module:
        """Find or download the weights and load them; the model comes back ready for inference.

        planned_length: how many positions the run will use at most; LongRoPE chooses its factors by it
        progress: see load_weights
        Raises InputError for weights that are absent, damaged, or not those of the configuration.
        """
        folder = resolve(self.name, self.revision, weights=True)
        model = self._skeleton()
        load_weights(model, folder, device=device, dtype=dtype, progress=progress)
        model.eval().requires_grad_(False)
        model.fuse_weights()
        model.plan(planned_length)
        return model

    def _skeleton(self) -> nn.Module:
        """The model without memory behind its parameters."""
        with torch.device("meta"):
            return build_model(self.config)
