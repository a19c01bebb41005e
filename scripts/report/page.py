"""One file to look at and to send: the answers, what they were made of and took, and the document with its margins.

It loads nothing from anywhere, and its policy forbids it to; no script runs in it but its own (page.js).
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

from cli.documents import Document
from cli.sources import Sources

from model.errors import InputError
from report.passages import count, document_html, text_html
from report.question import question_html
from report.recorder import Recorder
from wim import __version__

FOLDER = Path(__file__).parent


def check_report(path: str, read: Sequence[str] = ()) -> None:
    """Raises InputError where a report could not be written in the end, or would replace a file that is read."""
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and any(os.path.exists(file) and target.samefile(file) for file in read):
        raise InputError(f"--report {path} is the file that the question is about; give another path.")
    if target.exists() and not target.is_file():
        raise InputError(f"--report {path} is no file; give the path of one, such as run.html.")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(f"--report {path} cannot be written ({error.strerror}); give another path.") from None


def write_report(path: str, recorder: Recorder, document: Document, model: str) -> None:
    """Write the page, all of it or nothing: what was at `path` stays until then.

    document: what the recorder's questions are about
    model: its name, and what it runs on
    Raises OSError where it cannot be written.
    """
    target = os.path.realpath(path)
    beside = f"{target}.part"
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.write(page(recorder, document, model))
        os.replace(beside, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise


def page(recorder: Recorder, document: Document, model: str) -> str:
    """See write_report; the questions are those that have been answered, one or more."""
    plan, recordings = recorder.wim.plan, recorder.recordings
    sources = Sources(document, plan.chunks)
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    settings, size = plan.settings, f"{count(plan.document_tokens, 'token')} in {count(len(plan.chunks), 'chunk')}"
    margins = f", margins {settings.margins}" if settings.pattern == "wim" else ""
    how = f"Pattern {settings.pattern}{margins}; chunks of at most {count(settings.chunk_tokens, 'token')}"
    questions = [question_html(plan, one, sources, i, len(recordings)) for i, one in enumerate(recordings, 1)]
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        title=text_html(f"{recordings[0].query} · Writing in the Margins"),
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
        about=f"<bdi>{text_html(str(document))}</bdi> · {size} · {text_html(model)}",
        questions="\n".join(questions),
        document_title="The document" if settings.pattern == "llm" else "The document, and what was noted beside it",
        document=document_html(plan, recordings, sources),
        footer=f"{how}. Written by generate.py --report, version {__version__}. This page loads nothing from anywhere.",
    )
