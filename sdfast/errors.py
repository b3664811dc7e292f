"The one exception that means: the input is wrong, here is what to do."


class InputError(ValueError):
    "A user's input cannot be used; the message says what was given, what was expected and the next step"
