"""The registry of strategies: for each name its callback, strengths to try, formula and paper.

Studies, tables and figures read it. To add your own strategy, add a row:

    STRATEGIES['mine'] = Strategy(Mine, (.1, 1.), 'CE + lam ...', 'a paper')
"""
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter
from types import UnionType
from typing import Union, get_args, get_origin

from ..errors import InputError
from .anchor import EWC, L2SP, MAS, SI
from .averaging import LiNeS, WiSEFT
from .base_outputs import FLOW, KLToBase
from .byot import BYOT
from .cotuning import CoTuning
from .distill import EMATeacher, FixedTeacher, SelfDistill
from .feature_maps import DELTA, FeatureMaps
from .in_step import SPD, DiGraP
from .lora import LoRA
from .outputs import PSKD, LwF
from .r3f import R3F
from .rates import EncoderLR, LayerDecay, LowerLR
from .recipes import LPFT, FrozenBN, LinearProbe
from .replay import Replay
from .spectral import BSS
from .stochnorm import StochNorm

__all__ = ['Strategy', 'STRATEGIES', 'check_options']


def _same(lam:float)->float: return lam


@dataclass(frozen=True)
class Strategy:
    """A row of the registry: a strategy's callback, and its description in tables.

    `callback` is called with the strength (if there are `lams`), then with the attributes of the source model that
    `needs` lists, and with options by keyword. With lam 0 a strategy equals plain fine-tuning."""
    callback: Callable|None  # class of the callback, or a function that returns one or several; `None`: no callback
    lams: tuple  # strengths to choose from, weak to strong; () for a strategy without strength, which tries lrs
    formula: str  # formula of the loss, or of what the strategy changes
    paper: str  # where it was published
    needs: tuple = ()  # names of attributes of the source model: 'head', 'batches', 'fisher', 'mas', 'si', 'attention'
    options: dict = field(default_factory=dict)  # keyword arguments that differ from the callback's defaults
    strength: Callable = _same  # from lam to the callback's first argument
    definition: int = 0  # counts changes of what the strategy computes, so that runs of an earlier one are not reused

    def callbacks(self,
        lam:float, # Strength; ignored by a strategy that has none
        source:object=None, # The model before fine-tuning, with the attributes in `needs`; see `SourceModel`
        **options, # For the callback, see `check_options`
    )->list:
        "The callbacks for a `Learner`"
        if self.callback is None:
            if options: raise InputError(f'plain fine-tuning takes no options, not {", ".join(options)}')
            return []
        strength = [self.strength(lam)] if self.lams else []
        made = self.callback(*strength, *(getattr(source, n) for n in self.needs), **(self.options | options))
        return list(made) if isinstance(made, (list, tuple)) else [made]

    def parameters(self)->dict: # Name -> `inspect.Parameter`
        "The options: parameters of the callback other than the strength and the attributes in `needs`"
        if self.callback is None: return {}
        parameters = list(inspect.signature(self.callback).parameters.items())
        return dict(parameters[bool(self.lams) + len(self.needs):])


STRATEGIES = dict(
    finetune=Strategy(None, (), 'CE', 'plain fine-tuning'),
    lower_lr=Strategy(
        LowerLR, (1., 3., 9.), 'CE, learning rate/(1 + lam)', 'the control: less forgetting because of less learning'),
    encoder_lr=Strategy(
        EncoderLR, (1., 3., 7.), "CE, the encoder's learning rate/(1 + lam)", 'the control without a teacher'),
    # distillation
    self_distill=Strategy(
        SelfDistill, (3., 10., 30.), 'CE + lam mean (f - f_epoch)^2',
        'Zhou et al., Preserve Pre-trained Knowledge: Transfer Learning with Self-Distillation for Action Recognition'),
    fixed_teacher=Strategy(
        FixedTeacher, (.3, 1., 3.), 'CE + lam mean (f - f_0)^2', 'Mukhoti et al., TMLR 2024, last features'),
    ldifs=Strategy(
        FixedTeacher, (10., 30., 100.), 'CE + lam mean (f/|f| - f_0/|f_0|)^2 of all blocks',
        'Mukhoti et al., LDIFS, TMLR 2024', options=dict(layers='blocks', normalise=True), definition=1),
    ema_teacher=Strategy(
        EMATeacher, (1., 3., 10.), 'CE + lam mean (f - f_ema)^2', 'Tarvainen & Valpola, NeurIPS 2017'),
    lwf=Strategy(
        LwF, (.3, 1., 3.), 'CE + lam T^2 KL(old head(f_0) || old head(f))', 'Li & Hoiem, ECCV 2016', needs=('head',)),
    kl_base=Strategy(
        KLToBase, (.3, 1., 3.), 'CE + lam KL(old head(f_0) || old head(f))',
        "Shenfeld et al., RL's Razor, arXiv 2509.04259, as a penalty", needs=('head',)),
    feature_maps=Strategy(
        FeatureMaps, (.01, .03, .1), 'CE + lam/2 sum_layers sum_c mean (m_c - m_0c)^2',
        'Li et al., ICLR 2019, without attention'),
    delta=Strategy(
        DELTA, (.01, .03, .1), 'CE + lam/2 sum_layers sum_c C w_c mean (m_c - m_0c)^2', 'Li et al., DELTA, ICLR 2019',
        needs=('attention',)),
    pskd=Strategy(
        PSKD, (.3, .5, .8), 'CE with (1 - a) y + a p_(t-1), a = lam t/T', 'Kim et al., ICCV 2021'),
    byot=Strategy(
        BYOT, (.1, .3, 1.), 'CE + lam sum_layers ((1 - a) CE(q_l) + a T^2 KL(q || q_l) + b mean (F_l - F)^2)',
        'Zhang et al., ICCV 2019'),
    flow=Strategy(
        FLOW, (.3, .6, 1.), 'sum_i (1 - lam + lam exp(-l_0i/T)) CE_i, l_0 by a probe on f_0, T its median',
        'Sanyal et al., FLOW, ICML 2025'),
    # anchors
    l2sp=Strategy(
        L2SP, (.01, .03, .1), 'CE + lam/2 sum (w - w_0)^2', 'Li et al., ICML 2018'),
    ewc=Strategy(
        EWC, (.01, .03, .1), 'CE + lam/2 sum F (w - w_0)^2, mean F = 1', 'Kirkpatrick et al., PNAS 2017',
        needs=('fisher',), options=dict(normalize=True)),
    mas=Strategy(
        MAS, (.01, .03, .1), 'CE + lam/2 sum O (w - w_0)^2, mean O = 1', 'Aljundi et al., ECCV 2018',
        needs=('mas',), options=dict(normalize=True)),
    si=Strategy(
        SI, (.01, .03, .1), 'CE + lam/2 sum O (w - w_0)^2, O of the way there, mean O = 1', 'Zenke et al., ICML 2017',
        needs=('si',), options=dict(normalize=True)),
    # in the step of the optimizer
    spd=Strategy(
        SPD, (.3, 1., 3.), "CE, then w' = w' - lam r (w' - w_0) where <g, w - w_0> > 0, r = 1 - |w - w_0|/|w' - w_0|",
        'Tian et al., SPD, NeurIPS 2024'),
    digrap=Strategy(
        DiGraP, (.01, .1, 1.),
        'CE, its gradient g - omega <g, d>/<d, d> d where <g, d> < 0, d = w - w_0, omega learned at rate lam',
        'Huang et al., DiGraP, ICLR 2025'),
    # features and normalisation
    bss=Strategy(
        BSS, (.001, .01, .1), 'CE + lam sum_(i<=k) s_(-i)^2', 'Chen et al., NeurIPS 2019'),
    stoch_norm=Strategy(
        StochNorm, (.25, .5, .75), 'CE, moving statistics with probability lam', 'Kou et al., NeurIPS 2020'),
    co_tuning=Strategy(
        CoTuning, (.3, 1., 2.3), 'CE + lam CE(old head, p(y_s|y_t))', 'You et al., NeurIPS 2020', needs=('head',)),
    r3f=Strategy(
        R3F, (.1, 1., 10.), 'CE + lam symKL(p(x), p(x + e))', 'Aghajanyan et al., arXiv 2008.03156'),
    # recipes
    linear_probe=Strategy(
        LinearProbe, (), 'CE, only the head trains', 'Kumar et al., ICLR 2022'),
    lp_ft=Strategy(
        LPFT, (1., 3., 6.), 'CE, only the head trains for lam epochs', 'Kumar et al., ICLR 2022', strength=int),
    layer_decay=Strategy(
        LayerDecay, (.33, 1., 3.), 'CE, learning rate (1 + lam)^-depth', 'Clark et al., ELECTRA, ICLR 2020',
        strength=lambda lam: 1/(1 + lam)),
    frozen_bn=Strategy(
        FrozenBN, (), "CE, batch norm keeps the source's statistics", 'common in detection'),
    wise_ft=Strategy(
        WiSEFT, (.1, .3, .5), 'CE, then w = lam w_0 + (1 - lam) w', 'Wortsman et al., CVPR 2022',
        strength=lambda lam: 1 - lam),
    wise_ft_depth=Strategy(
        WiSEFT, (.1, .2, .4), 'CE, then w = w_0 + (1 - lam)^depth (w - w_0)',
        'Wortsman et al., CVPR 2022, with alpha by depth', options=dict(by_depth=True),
        strength=lambda lam: 1 - lam),
    lines=Strategy(
        LiNeS, (.3, .6, 1.), 'CE, then w = w_0 + (1 - lam (L - l)/(L - 1)) (w - w_0) in layer l of L',
        'Wang et al., LiNeS, ICLR 2025', strength=lambda lam: 1 - lam),
    lora=Strategy(
        LoRA, (), 'CE, w = w_0 + a/r B A', 'Hu et al., ICLR 2022'),
    replay=Strategy(
        Replay, (.1, .3, 1.), 'CE + lam CE on source clips: an upper bound, it sees the source',
        'Rebuffi et al., CVPR 2017, and many', needs=('batches', 'head')),
)


def check_options(
    strategy:str, # One of `STRATEGIES`
    options:dict, # Keyword arguments for its callback, see `Strategy.callbacks`
)->None:
    """Check the options of a strategy against its callback's signature, before anything is built.

    Raises `InputError` for an option that the callback does not take, and for a value that does not fit the annotated
    type, such as text or 1.5 for a whole number. The callback itself checks ranges."""
    if strategy not in STRATEGIES:
        raise InputError(f'unknown strategy {strategy!r}; known are {", ".join(STRATEGIES)}')
    parameters = STRATEGIES[strategy].parameters()
    known = [n for n, p in parameters.items() if p.kind is not Parameter.VAR_KEYWORD]
    for name, value in options.items():
        if name in known:
            parameter = parameters[name]
            if not _fits(value, parameter):
                raise InputError(f'option {name} of strategy {strategy} must be {_type_name(parameter)}, not {value!r}')
        elif len(known) == len(parameters):  # no **kwargs
            raise InputError(f'strategy {strategy} has no option {name!r}; it takes {", ".join(known) or "none"}')


def _types(parameter):
    "The types in a parameter's annotation; () if it has none"
    if parameter.annotation is Parameter.empty: return ()
    if get_origin(parameter.annotation) in (Union, UnionType): return get_args(parameter.annotation)
    return (parameter.annotation,)


def _fits(value, parameter):
    types = _types(parameter)
    if not types or any(isinstance(t, str) for t in types): return True  # no type to compare with
    if value is None: return type(None) in types or parameter.default is None
    if isinstance(value, bool): return bool in types
    if isinstance(value, int): return int in types or float in types or bool in types and value in (0, 1)
    if isinstance(value, float): return float in types
    if isinstance(value, str): return str in types
    return True  # objects are for the callback to check


# names of types in messages
NAMES = {bool:'true or false', int:'a whole number', float:'a number', str:'text', type(None):'none'}


def _type_name(parameter):
    types = _types(parameter)
    written = [NAMES[t] for t in types if t in NAMES]  # what a setting can hold
    return ' or '.join(written or [t.__name__ for t in types])
