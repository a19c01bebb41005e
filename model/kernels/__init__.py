"""What is there for speed alone. Who reads for the ideas can leave it out: model/attention.py says what is computed."""
