"Low-rank adapters on the encoder, made by PEFT and merged into the weights when the fit ends."
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..errors import InputError
from ..models.statistics import statistics_layers, watch_buffers
from .optimizers import unwrap_optimizer
from .peft_adapters import MISSING, PeftAdapters, check_config
from .recipe import Recipe

__all__ = ['LoRA']

LAYERS = nn.Conv3d, nn.Conv2d, nn.Linear  # kinds of layers that can have adapters


def _lora_model():
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise ImportError(MISSING) from None
    return LoraConfig, LoraModel


def _is_computed(layer):
    "Whether the weight is computed in each pass from others: by weight norm, spectral norm, pruning, `parametrize`"
    return layer._parameters.get('weight') is None


def _is_frozen(layer): return not _is_computed(layer) and not layer.weight.requires_grad


def _adaptable(m):
    # adapters are merged by adding to the weight, which the next pass would compute anew
    if _is_computed(m): return False
    # attention reads this layer's weight directly, without the adapter
    if isinstance(m, NonDynamicallyQuantizableLinear): return False
    if isinstance(m, nn.Linear): return True
    # PEFT's adapter of a convolution ignores groups and dilation, and pads with zeros
    return m.groups == 1 and set(m.dilation) == {1} and m.padding_mode == 'zeros'


def _matches(name, target):
    "Whether a layer's name is `target` or ends with it"
    return name == target or name.endswith(f'.{target}')


class LoRA(Recipe):
    """Train only the head and low-rank adapters of the encoder, `W + alpha/r B A` (Hu et al., ICLR 2022), made by PEFT.

    The encoder's weights and its batch norm, statistics included, are frozen; when the fit ends the adapters are merged
    into the weights. The optimizer has each adapter in the parameter group of its layer. Layers that are frozen before
    the fit get no adapters. Raises `ImportError` without PEFT, `InputError` for layers whose weight is computed from
    others, as by weight norm.

    `peft=` takes any configuration of PEFT that adapts layers: DoRA (`LoraConfig(use_dora=True)`), IA3, OSF, CorDA that
    keeps what the source knows (`LoraConfig(init_lora_weights='corda', corda_config=CordaConfig(corda_method='kpm'))`
    with `batches=` of source clips). Without `target_modules` all layers that could have adapters are named. That PEFT
    can merge them is tried before training."""
    name, needs_optimizer = 'lora', True
    _watch: watch_buffers|None = None  # finds layers with statistics of the user's own classes
    _stateattrs = Recipe._stateattrs + ('_watch',)
    _tuner = None  # PEFT's model around the encoder, or its `PeftAdapters`, while there are adapters
    _joined = ()  # the adapters' weights in the optimizer
    _unchecked = False  # whether the check that all adapters get gradients is still to come

    def __init__(self,
        r:int=8, # Rank
        alpha:float=16, # The adapters' output is scaled by `alpha/r`
        encoder:str|Callable|None=None, # Which part of the model to adapt, see `find_encoder`
        targets:str|Sequence[str]|None=None, # Names, or ends of names, of Conv3d, Conv2d and Linear layers; `None`: all
        peft:Any=None, # A configuration of PEFT, in place of `r`, `alpha` and `targets`
        batches:Iterable|None=None, # Loader of source clips, for CorDA
    ):
        super().__init__(encoder)
        if peft is not None:
            if (r, alpha, targets) != (8, 16, None):
                raise InputError('LoRA takes r, alpha and targets, or peft=, whose configuration has its own')
            check_config(peft)
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise ValueError(f'r must be a whole number of at least 1, not {r!r}')
        if not 0 < alpha < float('inf'): raise ValueError(f'alpha must be a number above 0, not {alpha}')
        _lora_model()
        self.r, self.alpha, self.targets = r, alpha, [targets] if isinstance(targets, str) else targets
        self.peft, self.batches = peft, batches

    @property
    def order(self)->int:
        # added early, before DDP wraps and other callbacks save the model; removed late, as SaveModelCallback and
        # LRFinder load a model with adapters
        return -5 if self._tuner is None else 70

    def layers(self)->list[str]:
        "Names of the layers to adapt"
        found = {n:m for n, m in self.module().named_modules() if n and isinstance(m, LAYERS)}
        computed = [n for n, m in found.items() if _is_computed(m) and self._wanted(n)]
        if computed:
            raise InputError(f'LoRA cannot adapt {", ".join(computed)}: their weights are computed by weight norm, '
                             'spectral norm, pruning or parametrize, and would lose what the adapters learnt. Remove '
                             'that (remove_weight_norm, prune.remove, remove_parametrizations), or pass targets=[...] '
                             'without these layers')
        self._check_tied(found)
        if self.targets is None: chosen = [n for n, m in found.items() if _adaptable(m) and not _is_frozen(m)]
        else: chosen = self._targeted(found)
        if not chosen:
            if any(_adaptable(m) for m in found.values()):
                raise InputError('LoRA: all layers of the encoder are frozen, so no adapter may train: unfreeze some '
                                 'before the fit (learn.unfreeze()), or train with LinearProbe() instead')
            raise ValueError(f'LoRA: {type(self.module()).__name__} has no Conv3d, Conv2d or Linear inside that can be '
                             'adapted; pass another encoder=...')
        return chosen

    def _check_tied(self, found):
        "Raise `InputError` for layers with one weight in common, to which each adapter would be added when merged"
        shared = {}
        for n, m in found.items(): shared.setdefault(id(m.weight), []).append(n)
        tied = [names for names in shared.values() if len(names) > 1 and any(map(self._wanted, names))]
        if not tied: return
        raise InputError(f'LoRA cannot adapt {" and ".join(tied[0])}, which have one weight in common: the adapters of '
                         'both would be merged into it. Pass targets=[...] without these layers')

    def _wanted(self, name): return self.targets is None or any(_matches(name, t) for t in self.targets)

    def _targeted(self, found):
        chosen = [n for n in found if self._wanted(n)]
        missing = [t for t in self.targets if not any(_matches(n, t) for n in found)]
        if missing:
            raise ValueError(f'LoRA: the encoder has no Conv3d, Conv2d or Linear {", ".join(map(repr, missing))}; '
                             f'it has {", ".join(found) or "none"}')
        wrong = [n for n in chosen if not _adaptable(found[n])]
        if wrong:
            raise ValueError(f'LoRA cannot adapt {", ".join(wrong)}: layers must not have groups, dilation or '
                             'padding other than zeros, nor be the projection of nn.MultiheadAttention; '
                             'leave them out of targets')
        frozen = [n for n in chosen if _is_frozen(found[n])]
        if frozen:
            raise InputError(f'LoRA: {", ".join(frozen)} of targets are frozen, so their adapters may not train: '
                             'unfreeze them before the fit, or leave them out of targets')
        return chosen

    def begin(self)->None:
        names, encoder = self.layers(), self.module()
        device = next(encoder.parameters()).device
        self.freeze(encoder.parameters())
        self._watch = watch_buffers(encoder, freeze=True)
        # in a copy of the random state, so that data and dropout equal those of other strategies with this seed
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            if self.peft is None: self._tuner = self._insert(encoder, names)
            else: self._tuner = PeftAdapters.insert(encoder, self.peft, names, self.batches)
        self._unchecked = self.peft is None
        self._join()

    def _insert(self, encoder, names):
        LoraConfig, LoraModel = _lora_model()
        pattern = '|'.join(n.replace('.', r'\.') for n in names)
        return LoraModel(encoder, LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=pattern), 'default')

    def adapters(self)->dict:
        "`{name: (layer, A, B)}` while a fit runs"
        return {n:(m.get_base_layer(), m.lora_A['default'], m.lora_B['default'])
                for n, m in self.module().named_modules() if hasattr(m, 'lora_A')}

    def changes(self)->dict[str, torch.Tensor]:
        "The adapters' current contribution to each weight, by the weight's name in the encoder without adapters"
        changes = {}
        for n, (layer, a, b) in self.adapters().items():
            change = self.alpha/self.r*(b.weight.flatten(1) @ a.weight.flatten(1))
            changes[f'{n}.weight'] = change.view_as(layer.weight).to(layer.weight.dtype)
        return changes

    def merged(self)->dict[str, torch.Tensor]:
        "The encoder's weights by the names that they have without adapters, as they would be if merged now"
        if self.peft is not None and self._tuner is not None: return self._tuner.merged()
        changes = self.changes()
        weights = {n.replace('.base_layer.', '.'):p.detach()
                   for n, p in self.module().named_parameters() if '.lora_' not in n}
        return {n:p + changes[n] if n in changes else p for n, p in weights.items()}

    def _added(self):
        "The weight of each adapted layer, and the parameters that train in its place"
        if self.peft is not None: return self._tuner.added()
        return [(layer.weight, [a.weight, b.weight]) for layer, a, b in self.adapters().values()]

    def _join(self):
        # do not recreate the optimizer: schedulers have counted its groups, and the head may have momentum
        core = unwrap_optimizer(self.loop.opt)
        groups = [list(params) for params in self.loop.opt.param_lists]
        where = {id(p):i for i, params in enumerate(groups) for p in params}
        added = [(where.get(id(weight), 0), [p for p in ps if id(p) not in where]) for weight, ps in self._added()]
        for i, ps in added: groups[i] += ps
        self._joined = tuple(p for _, ps in added for p in ps)
        if not isinstance(core, torch.optim.Optimizer):
            for p in self._joined: core.state[p] = {}  # a loaded optimizer state has no entries for new parameters
        self.loop.opt.param_lists = groups

    def _leave(self):
        gone = set(map(id, self._joined))
        self.loop.opt.param_lists = [[p for p in params if id(p) not in gone] for params in self.loop.opt.param_lists]
        for p in self._joined:
            for o in (self.loop.opt, unwrap_optimizer(self.loop.opt)): o.state.pop(p, None)
        self._joined = ()

    def before_train(self): self.set_eval(statistics_layers(self.module()))

    def before_batch(self): self.before_train()

    def after_backward(self):
        if not self._unchecked: return
        self._unchecked = False
        unused = [n for n, (_, a, _) in self.adapters().items() if a.weight.requires_grad and a.weight.grad is None]
        if unused:
            warnings.warn(f'LoRA: the encoder reads the weights of {", ".join(unused)} without their adapters, which '
                          'therefore do not train; leave them out of targets')

    @torch.no_grad()
    def unload(self,
        merge:bool=True, # Add the adapters to the weights
    )->None:
        "Remove the adapters from the encoder and the optimizer; without adapters, do nothing"
        if self._tuner is None: return
        if self.peft is not None: self._tuner.remove(merge)
        else: self._unload(merge)
        self._tuner = None
        if self._watch is not None: self._watch.remove()
        self._watch = None
        if self._joined and self.loop.opt is not None: self._leave()
        self.thaw()

    def _unload(self, merge):
        if merge:  # PEFT's own merge fails on 1x1x1 kernels
            layers = [layer for layer, _, _ in self.adapters().values()]
            for layer, change in zip(layers, self.changes().values()): layer.weight.add_(change)
        self._tuner.unload()

    def undo(self)->None:
        self.unload()
        super().undo()
