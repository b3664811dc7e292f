"A `repr` that shows the arguments an object was made with."
import inspect
import reprlib
from inspect import Parameter

import torch
from torch import nn

__all__ = ['ShowArguments']


class _Brief(reprlib.Repr):
    "Tensors by shape, modules and objects without a `repr` of their own by class, long containers by first entries"
    def repr_instance(self, x, level):
        if torch.is_tensor(x): return f'{type(x).__name__}{tuple(x.shape)}'
        if isinstance(x, nn.Module): return type(x).__name__
        if inspect.isroutine(x): return x.__name__
        if type(x).__repr__ is object.__repr__: return type(x).__name__  # else it would show an address
        return super().repr_instance(x, level)


_brief = _Brief()
_brief.maxstring = _brief.maxother = 80
_brief.maxdict = 1


class ShowArguments:
    """Mix-in: `repr` shows the arguments that differ from their defaults, such as `SelfDistill(lam=100.0)`.

    The value of an argument is read from the attribute of the same name, or from the one that `_argument_attrs` gives
    for it. An argument that is not stored is left out. Among the bases it must come before `Callback`, which defines
    `__repr__` too."""
    _argument_attrs: dict[str, str] = {}  # argument -> attribute, where their names differ

    def __repr__(self)->str:
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            attr = self._argument_attrs.get(name, name)
            # not `hasattr(self, attr)`: a fastai callback looks up missing attributes in its learner
            if name == 'self' or not (attr in vars(self) or hasattr(type(self), attr)): continue
            value = getattr(self, attr)
            if not _is_default(value, parameter): shown.append(f'{name}={_brief.repr(value)}')
        return f'{type(self).__name__}({", ".join(shown)})'


def _is_default(value, parameter):
    if parameter.default is Parameter.empty: return False
    if value is parameter.default: return True
    return type(value) is type(parameter.default) and not torch.is_tensor(value) and value == parameter.default
