"Adapters of any PEFT configuration on an encoder: inserted, trained, and merged or removed again."
import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..models.calls import call_on
from ..models.copies import copy_all
from ..models.modes import eval_mode

__all__ = ['PeftAdapters', 'check_config']

MISSING = "LoRA needs the package peft, which is not installed: pip install 'sdfast[lora]'"


def check_config(
    config:Any, # The value to check
)->None:
    "Raise `InputError` unless it is a configuration of PEFT that adapts layers"
    try:
        from peft import PeftConfig
    except ImportError: raise ImportError(MISSING) from None
    if not isinstance(config, PeftConfig):
        raise InputError(f'peft must be a configuration of PEFT such as LoraConfig(use_dora=True), not {config!r}')
    if _tuner_class(config) is None:
        raise InputError(f'{type(config).__name__} adapts prompts of language models, not layers; expected a '
                         'configuration such as LoraConfig, IA3Config or OSFConfig')


def _tuner_class(config):
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner
    found = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    return found if isinstance(found, type) and issubclass(found, BaseTuner) and not config.is_prompt_learning else None


def _needs_batches(config): return getattr(config, 'init_lora_weights', None) == 'corda'


@dataclass
class PeftAdapters:
    "PEFT's adapters in an encoder; all its other weights are frozen by PEFT"
    encoder: nn.Module  # with the adapters in it
    tuner: Any  # PEFT's model around it
    weights: dict  # name -> the encoder's parameters before: some configurations put others in their place
    start: dict  # name -> their values: PiSSA, CorDA and OSF change them when they are inserted

    @classmethod
    def insert(cls,
        encoder:nn.Module, # Gets the adapters, in place
        config:Any, # Of PEFT
        names:list[str], # Layers to adapt if the configuration names none
        batches:Iterable|None=None, # Source clips, which CorDA measures its directions on
    )->'PeftAdapters':
        "Insert adapters. Raises `InputError` if PEFT cannot adapt this encoder, or could not merge them later"
        config = copy.deepcopy(config)
        if getattr(config, 'target_modules', 'none') is None: config.target_modules = names
        weights = dict(encoder.named_parameters())
        start = {n:p.detach().clone() for n, p in weights.items()}
        if _needs_batches(config): _measure_corda(encoder, config, batches)
        try:
            # in a copy first: what PEFT cannot merge must be known before training
            probe = _tuner_class(config)(copy_all(encoder, {}), copy.deepcopy(config), 'default')
            left = dict(probe.merge_and_unload().named_parameters())
            if left.keys() != weights.keys(): raise ValueError('other weights would be left')
            tuner = _tuner_class(config)(encoder, config, 'default')
        except Exception as e:
            why = ' '.join(str(e).split())
            raise InputError(f'PEFT cannot insert {type(config).__name__} into {type(encoder).__name__} and merge it '
                             f'again: {why}; name other target_modules') from None
        return cls(encoder, tuner, weights, start)

    def added(self)->list[tuple]: # The weight of a layer before, and the parameters that train in its place
        "The trainable parameters by the layer that they belong to"
        found: dict[int, tuple] = {}
        weights = dict(self.encoder.named_parameters())
        for name, p in weights.items():
            if not p.requires_grad: continue
            base = next((weights[n] for n in _bases(name) if n in weights), p)
            found.setdefault(id(base), (base, []))[1].append(p)
        return list(found.values())

    @torch.no_grad()
    def merged(self)->dict[str, torch.Tensor]:
        "The encoder's weights as they would be if the adapters were merged now"
        return {n:p.detach() for n, p in copy_all(self.tuner, {}).merge_and_unload().named_parameters()}

    @torch.no_grad()
    def remove(self,
        merge:bool=True, # Add what was learned to the weights, else restore the weights as they were, exactly
    )->None:
        "Remove the adapters"
        values = self.merged() if merge else self.start
        self.tuner.unload()
        for name, p in self.weights.items():
            p.copy_(values[name])
            place, _, own = name.rpartition('.')
            self.encoder.get_submodule(place)._parameters[own] = p  # the optimizer has this one


def _bases(name):
    "Names that the weight of an adapter's layer may have: each module above it, with PEFT's wrapper"
    words = name.split('.')
    for i in range(len(words) - 1, 0, -1):
        path = '.'.join(words[:i])
        yield from (f'{path}.base_layer.weight', f'{path}.original_module.weight')


@contextmanager
def _rows_alone(encoder)->Iterator[None]:
    "Give linear layers their inputs as `(N, F)`, the only form that PEFT's covariances take"
    shapes: dict[nn.Module, torch.Size] = {}

    def flatten(layer, args):
        shapes[layer] = args[0].shape[:-1]
        return args[0].flatten(0, -2), *args[1:]

    def restore(layer, args, out): return out.unflatten(0, shapes.pop(layer))
    layers = [m for m in encoder.modules() if isinstance(m, nn.Linear)]
    handles = [h for m in layers for h in (m.register_forward_pre_hook(flatten), m.register_forward_hook(restore))]
    try: yield
    finally:
        for h in handles: h.remove()


def _measure_corda(encoder, config, batches):
    "The covariances of the layers' inputs on source clips, from which CorDA takes its directions"
    from peft.tuners.lora.corda import preprocess_corda
    if batches is None:
        raise InputError('CorDA takes its directions from clips: pass batches=LOADER of source clips to LoRA')
    device = next(encoder.parameters()).device

    def run():
        with _rows_alone(encoder):
            for batch in batches: call_on(encoder, split_batch(batch)[0].as_subclass(torch.Tensor).to(device))
    with torch.no_grad(), eval_mode(encoder): preprocess_corda(encoder, config, run_model=run)
