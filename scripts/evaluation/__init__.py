"""Measuring the three patterns: documents and questions, a run that can be interrupted, and a table of its results."""
