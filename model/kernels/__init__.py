"""All this is there for speed alone. A reader of the ideas can leave it out: model/attention.py says what is computed."""
