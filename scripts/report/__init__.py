"""A run to look at: what happened (recorder.py), the cache's length (strip.py), and all of it as a page (page.py)."""

from report.page import check_report, write_report
from report.recorder import Recorder, Recording, Step
from report.strip import strip

__all__ = ["Recorder", "Recording", "Step", "check_report", "strip", "write_report"]
