"Study and prevent forgetting when a pre-trained video encoder is fine-tuned."


def __getattr__(name:str)->str:
    "The version, looked up when it is asked for: commands import this package before they can handle Ctrl-C"
    if name != '__version__': raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib.metadata import version
    return version('sdfast')
