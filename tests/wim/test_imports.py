"""What is loaded, and by whom: wim/ is the part to carry over, and a process that answers once has no time to lose."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import wim

# torch and huggingface_hub load argparse and tqdm for themselves: what counts is who asks for a module.
PROGRAM = """
import builtins, importlib, json, pkgutil, sys
asked, load = [], builtins.__import__

def spy(name, globals=None, *others, **options):
    asked.append([(globals or {}).get("__name__") or "", name])
    return load(name, globals, *others, **options)

builtins.__import__ = spy
import wim
for module in pkgutil.walk_packages(wim.__path__, "wim."):
    importlib.import_module(module.name)
import torch, weights
weights.Checkpoint.open("demo-llama").load_model("cpu", torch.float32, 8)
print(json.dumps({"asked": asked, "loaded": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def found():
    root = Path(wim.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_wim_needs_no_command_line_no_progress_bar_and_none_of_the_scripts(found):
    modules = {"wim." + path.stem for path in Path(wim.__file__).parent.glob("*.py")} - {"wim.__init__"}
    assert modules <= set(found["loaded"]) and len(modules) > 10
    ours = [(who, what) for who, what in found["asked"] if who.split(".")[0] in ("wim", "weights", "model")]
    assert ("wim.loop", "wim.desk") in ours
    unwanted = {"argparse", "tqdm", "scripts", "cli", "tasks", "evaluation", "training"}
    assert [pair for pair in ours if pair[1].split(".")[0] in unwanted] == []
    assert not unwanted - {"argparse", "tqdm"} & set(found["loaded"])


def test_to_load_a_model_imports_no_compiler(found):
    """Which takes a second or more. Tensors on the meta device ask for it when some functions are called."""
    assert "weights.safetensors_loader" in found["loaded"]
    assert not {"sympy", "torch._dynamo", "torch._inductor"} & set(found["loaded"])
