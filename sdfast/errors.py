"Errors whose messages say what to do."


class InputError(ValueError):
    "A user's input cannot be used; the message says what was given, what was expected and what to do next"


class StoreError(RuntimeError):
    "A study's folder cannot be written to: the disk is full, or the folder belongs to something else"


class Damaged(RuntimeError):
    "A file is truncated, or its content has changed since it was written"


class Busy(RuntimeError):
    "Another process is working in the folder"
