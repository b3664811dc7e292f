"What can go wrong in a way that the reader of the message can do something about."


class InputError(ValueError):
    "A user's input cannot be used; the message says what was given, what was expected and the next step"


class StoreError(RuntimeError):
    "A study's folder cannot be written to: the disk is full, or the place is not ours"


class Damaged(RuntimeError):
    "A file is not what was written: half of it, or other bytes"


class Busy(RuntimeError):
    "Another process works on it"
