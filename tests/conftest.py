"""What all tests share: one thread, property tests without deadlines, GPU tests only where there is a GPU.

And the conformance kit. `pytest --family NAME` runs what the rows of one family in tests/helpers/model_variants.py are held
to, which are the project's own tests, and says in words what does not hold yet.
"""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does that to what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the models of the tests are too small to share among threads
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--family", metavar="NAME", help="run the tests of one family's rows, and say what does not hold yet")


def pytest_configure(config):
    if not (family := config.getoption("--family")):
        return
    from model_variants import PLAIN

    from weights.families import FAMILIES

    for place, known in (("weights/families.py", FAMILIES), ("tests/helpers/model_variants.py", [v.kind for v in PLAIN])):
        if family not in known:
            raise pytest.UsageError(f"--family {family}: {place} has no row of this family; it has: {', '.join(known)}.")


def pytest_collection_modifyitems(config, items):
    if family := config.getoption("--family"):
        others = [item for item in items if family not in families_of(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if family in families_of(item)]
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def families_of(item):
    """The families whose rows a test is about."""
    from model_variants import VARIANT, Variant

    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    rows = [VARIANT.get(value, value) if isinstance(value, str) else value for value in values]
    return [row.kind if isinstance(row, Variant) else row for row in rows]


def pytest_terminal_summary(terminalreporter, config):
    if not (family := config.getoption("--family")):
        return
    stats = terminalreporter.stats
    broken = {}
    for report in (*stats.get("failed", ()), *stats.get("error", ())):
        test, _, row = report.nodeid.rpartition("::")[2].removeprefix("test_").partition("[")
        crash = getattr(report.longrepr, "reprcrash", None)
        broken.setdefault(test.replace("_", " "), []).append(
            (row.rstrip("]"), crash.message.splitlines()[0] if crash else "")
        )
    terminalreporter.section(f"{family}: {len(stats.get('passed', ()))} checks hold")
    for said, rows in broken.items():
        shown = ", ".join(row for row, _ in rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
        terminalreporter.line(f"Does not hold yet: {said}, for {shown}: {rows[0][1][:300]}")
