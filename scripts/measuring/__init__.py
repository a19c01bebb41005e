"""What scripts/benchmark.py measures: whose shapes, on which documents, and how."""
