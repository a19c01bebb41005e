"""The exceptions that a person is meant to read."""


class InputError(ValueError):
    """Something from outside (a file, an argument, a checkpoint) cannot be used.

    The message is one sentence: what was wrong, with the value, and what to do. Scripts print it and exit with 2.
    """


class DoesNotFit(InputError):
    """A model's context cannot hold a document with what is asked about it; a shorter one may do."""
