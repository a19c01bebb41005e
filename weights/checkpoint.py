"""A published checkpoint, opened in two steps: first all that is small and can be wrong, then the weights.

So a wrong configuration, a missing template or a budget that does not fit is found before gigabytes are read.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from model import ModelConfig, count_bytes, empty_model
from model.errors import InputError, shown
from weights.config import read_model_config
from weights.files import ADAPTER, GGUF, GGUF_IS_NOT_READ, QUANTISATION_FILES, SMALL_FILES, is_there, read_json
from weights.hub import resolve
from weights.quantised import refuse_quantised
from weights.safetensors_loader import Progress, load_weights
from weights.text.chat import ChatFormat
from weights.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from model.parallel import Rank


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
        _refuse_what_is_no_model(folder)
        max_length = read_json(folder / "tokenizer_config.json", optional=True).get("model_max_length")
        config = read_model_config(read_json(folder / "config.json"), max_length)
        tokenizer = Tokenizer.from_folder(folder, config.vocab_size)
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

    def weight_bytes(self, dtype: torch.dtype, weights: str = "float", rank: Rank | None = None) -> int:
        """Bytes of the parameters, as `load_model` has them, tied ones counted once. Needs no weight file."""
        return count_bytes(self.config, dtype, weights, rank)

    def load_model(
        self,
        device: torch.device | str,
        dtype: torch.dtype,
        max_length: int,
        progress: Progress | None = None,
        weights: str = "float",
        rank: Rank | None = None,
    ) -> nn.Module:
        """Find or download the weights and load them; the model comes back ready for inference.

        max_length: how many positions the run will use at most; LongRoPE chooses its factors by it
        progress: told (bytes read, bytes in all) while the weights come in
        weights: "int8" for the matrices of the layers as integers (model/int8.py); `dtype` is what is computed in
        rank: only its part of the model (model/parallel.py)
        Raises InputError for weights that are absent, damaged, or not those of the configuration.
        """
        folder = resolve(self.name, self.revision, weights=True)
        model = empty_model(self.config, dtype, weights, rank).allocate(device)
        load_weights(model, folder, progress=progress, cuts=None if rank is None else rank.cuts(self.config))
        model.set_max_length(max_length)
        return model.eval()


def _refuse_what_is_no_model(folder: Path) -> None:
    """Raises InputError for a folder without config.json, links that lead nowhere, an adapter, and a file that tells
    of quantised weights."""
    there = {file for file in SMALL_FILES if is_there(folder / file)}
    if "config.json" not in there:
        if ADAPTER in there:
            base = read_json(folder / ADAPTER).get("base_model_name_or_path")
            raise InputError(
                f"{folder} holds an adapter, which is no model by itself; merge it into its base model"
                f"{f' ({shown(base)})' if base else ''} and give the result."
            )
        if gguf := sorted(path.name for path in folder.glob(f"*{GGUF}")):
            raise InputError(f"{folder} holds {gguf[0]}, {GGUF_IS_NOT_READ}")
        raise InputError(f"{folder} has no config.json, so it is no checkpoint folder; give the one that has it.")
    for file in QUANTISATION_FILES:
        refuse_quantised(read_json(folder / file, optional=True), file)
    if ADAPTER in there:
        warnings.warn(f"{folder} holds an adapter beside a model; the model is read without it.", stacklevel=3)
