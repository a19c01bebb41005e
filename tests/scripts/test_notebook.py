"""scripts/notebook.ipynb: its cells run in their order, and give what it shows."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path

from wim.events import Done, Margin

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "scripts" / "notebook.ipynb").read_text(encoding="utf-8")
NOTEBOOK = json.loads(TEXT)
SHOWN = {"text/html": "_repr_html_", "image/svg+xml": "_repr_svg_"}


def run(source: str, names: dict) -> tuple[str, object]:
    """What a cell prints, and the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "<cell>", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return out.getvalue(), value


def test_its_cells_give_what_it_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict = {"__name__": "__main__"}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] != "code":
            continue
        printed, value = run("".join(cell["source"]), names)
        outputs = cell["outputs"]
        assert printed == "".join(line for output in outputs for line in output.get("text", []))
        data = next((output["data"] for output in outputs if "data" in output), {})
        found = {kind: getattr(value, method)() for kind, method in SHOWN.items() if hasattr(value, method)}
        assert found == {kind: "".join(lines) for kind, lines in data.items() if kind in SHOWN}
    # The cells assert what they claim: that a struck margin changes the answer, and that nothing is read twice.
    assert names["done"].answer != names["struck"].answer != names["rewritten"].answer


def test_an_answer_shows_itself_and_is_data():
    margins = [Margin(6, 0, 1, "<b>yes</b>"), Margin(7, 1, 2, "no", relevant=False)]
    html = Done("<script>", margins, 8)._repr_html_()
    assert html == ("<p><b>&lt;script&gt;</b></p><ul><li>&lt;b&gt;yes&lt;/b&gt; <small>chunk 7</small></li></ul>")
    assert Done("plain", [], 1)._repr_html_() == "<p><b>plain</b></p>"


def test_it_holds_nothing_of_the_machine_that_ran_it():
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"} and set(NOTEBOOK["metadata"]["language_info"]) == {
        "name"
    }
    assert all(cell["metadata"] == {} for cell in NOTEBOOK["cells"])
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert str(Path.home()) not in TEXT and " at 0x" not in TEXT
