"""wim/ is the part to carry over: it needs no command line, no progress bar, and none of the scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
print(json.dumps({"asked": asked, "loaded": sorted(sys.modules)}))
"""


def test_no_module_loads_what_belongs_to_scripts():
    root = Path(wim.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    modules = {"wim." + path.stem for path in Path(wim.__file__).parent.glob("*.py")} - {"wim.__init__"}
    assert modules <= set(found["loaded"]) and len(modules) > 10
    ours = [(who, what) for who, what in found["asked"] if who.split(".")[0] in ("wim", "weights", "model")]
    assert ("wim.loop", "wim.desk") in ours
    unwanted = {"argparse", "tqdm", "scripts", "cli", "tasks", "evaluation", "training"}
    assert [pair for pair in ours if pair[1].split(".")[0] in unwanted] == []
    assert not unwanted - {"argparse", "tqdm"} & set(found["loaded"])
