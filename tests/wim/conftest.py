"""Tiny checkpoints of each kind that can chat, made once for all tests of wim/."""

from __future__ import annotations

import pytest
from wim_helpers import DEMO, READERS, write_reader

from weights import DEMOS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {name: write_reader(tmp_path_factory.mktemp("readers") / name, name) for name in READERS}
    return made | {DEMO: DEMOS[DEMO]}
