"""A run to look at.

What happened (recorder.py), the cache's length over it (strip.py), margins beside their text (beside.py for a notebook,
passages.py for a page), and all of it as a page (page.py, question.py).
"""

from report.beside import Beside
from report.page import check_report, write_report
from report.recorder import Recorder, Recording, Step
from report.strip import Strip, strip

__all__ = ["Beside", "Recorder", "Recording", "Step", "Strip", "check_report", "strip", "write_report"]
