"""Names that are loaded when they are first asked for."""

from __future__ import annotations

import sys

import pytest

from model.lazy import from_modules


@pytest.mark.parametrize(
    "line, said",
    [
        ("import os; os.absent_name", "module 'os' has no attribute 'absent_name'"),
        ("import absent_module", "absent_module"),
    ],
    ids=["attribute", "import"],
)
def test_what_fails_inside_a_module_is_told(tmp_path, monkeypatch, line, said):
    package = tmp_path / "lazy_example"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from model.lazy import from_modules\n__getattr__ = from_modules(__name__, {'Thing': 'inner'})\n"
    )
    (package / "inner.py").write_text(f"{line}\nThing = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("lazy_example", "lazy_example.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=said):
        from lazy_example import Thing  # noqa: F401


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'model' has no attribute 'Absent'"):
        from_modules("model", {})("Absent")
