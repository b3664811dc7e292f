"Ways to fine-tune: each fastai callbacks, listed in `STRATEGIES` for the scripts and the docs."
from collections.abc import Callable
from dataclasses import dataclass

from .anchor import EWC, L2SP, MAS, SI
from .averaging import WiSEFT
from .distill import DELTA, EMATeacher, FeatureMaps, FixedTeacher, SelfDistill
from .features import BSS, R3F, CoTuning, StochNorm
from .lora import LoRA
from .outputs import BYOT, PSKD, LwF
from .recipes import LPFT, FrozenBN, LayerDecay, LinearProbe, LowerLR
from .replay import Replay

__all__ = ['Strategy', 'STRATEGIES']



@dataclass(frozen=True)
class Strategy:
    """A row of the registry. `callbacks(lam, source, **options)` returns what goes into a `Learner`; `source` knows the model before
    fine-tuning: its `head`, `fisher`, `mas`, `si`, `attention` and `batches` (see `study.Source`). lam 0 is plain fine-tuning."""
    callbacks: Callable  # from `(lam, source, **options)` to what goes into a `Learner`
    lams: tuple  # strengths to choose from, weak to strong; () for what has none and tries learning rates instead
    formula: str  # of the loss, or of what changes
    paper: str  # where it comes from
    needs: str = ''  # what `source` must have


STRATEGIES = dict(
    finetune=Strategy(lambda lam, src: [], (), 'CE', 'plain fine-tuning'),
    lower_lr=Strategy(lambda lam, src, **kw: [LowerLR(lam, **kw)], (1., 3., 9.), 'CE, learning rate/(1 + lam)', 'the control: less forgetting because of less learning'),
    # distillation
    self_distill=Strategy(lambda lam, src, **kw: [SelfDistill(lam, **kw)], (3., 10., 30.), 'CE + lam mean (f - f_epoch)^2',
                          'Zhou et al., Preserve Pre-trained Knowledge: Transfer Learning with Self-Distillation for Action Recognition'),
    fixed_teacher=Strategy(lambda lam, src, **kw: [FixedTeacher(lam, **kw)], (.3, 1., 3.), 'CE + lam mean (f - f_0)^2', 'Mukhoti et al., TMLR 2024, last features'),
    ldifs=Strategy(lambda lam, src, **kw: [FixedTeacher(lam, **(dict(layers='blocks') | kw))], (.3, 1., 3.), 'CE + lam mean (f - f_0)^2 of all blocks', 'Mukhoti et al., LDIFS, TMLR 2024'),
    ema_teacher=Strategy(lambda lam, src, **kw: [EMATeacher(lam, **kw)], (1., 3., 10.), 'CE + lam mean (f - f_ema)^2', 'Tarvainen & Valpola, NeurIPS 2017'),
    lwf=Strategy(lambda lam, src, **kw: [LwF(lam, src.head, **kw)], (.3, 1., 3.), 'CE + lam T^2 KL(old head(f_0) || old head(f))', 'Li & Hoiem, ECCV 2016', 'head'),
    feature_maps=Strategy(lambda lam, src, **kw: [FeatureMaps(lam, **kw)], (.01, .03, .1), 'CE + lam/2 sum_layers sum_c mean (m_c - m_0c)^2', 'Li et al., ICLR 2019, without attention'),
    delta=Strategy(lambda lam, src, **kw: [DELTA(lam, src.attention, **kw)], (.01, .03, .1), 'CE + lam/2 sum_layers sum_c C w_c mean (m_c - m_0c)^2', 'Li et al., DELTA, ICLR 2019', 'attention'),
    pskd=Strategy(lambda lam, src, **kw: [PSKD(lam, **kw)], (.3, .5, .8), 'CE with (1 - a) y + a p_(t-1), a = lam t/T', 'Kim et al., ICCV 2021'),
    byot=Strategy(lambda lam, src, **kw: [BYOT(lam, **kw)], (.1, .3, 1.), 'CE + lam sum_layers ((1 - a) CE(q_l) + a T^2 KL(q || q_l) + b mean (F_l - F)^2)', 'Zhang et al., ICCV 2019'),
    # anchors
    l2sp=Strategy(lambda lam, src, **kw: [L2SP(lam, **kw)], (.01, .03, .1), 'CE + lam/2 sum (w - w_0)^2', 'Li et al., ICML 2018'),
    ewc=Strategy(lambda lam, src, **kw: [EWC(lam, src.fisher, **(dict(normalize=True) | kw))], (.01, .03, .1), 'CE + lam/2 sum F (w - w_0)^2, mean F = 1', 'Kirkpatrick et al., PNAS 2017', 'fisher'),
    mas=Strategy(lambda lam, src, **kw: [MAS(lam, src.mas, **(dict(normalize=True) | kw))], (.01, .03, .1), 'CE + lam/2 sum O (w - w_0)^2, mean O = 1', 'Aljundi et al., ECCV 2018', 'mas'),
    si=Strategy(lambda lam, src, **kw: [SI(lam, src.si, **(dict(normalize=True) | kw))], (.01, .03, .1), 'CE + lam/2 sum O (w - w_0)^2, O of the way there, mean O = 1', 'Zenke et al., ICML 2017', 'si'),
    # features and norms
    bss=Strategy(lambda lam, src, **kw: [BSS(lam, **kw)], (.001, .01, .1), 'CE + lam sum_(i<=k) s_(-i)^2', 'Chen et al., NeurIPS 2019'),
    stoch_norm=Strategy(lambda lam, src, **kw: [StochNorm(lam, **kw)], (.25, .5, .75), 'CE, moving statistics with probability lam', 'Kou et al., NeurIPS 2020'),
    co_tuning=Strategy(lambda lam, src, **kw: [CoTuning(lam, src.head, **kw)], (.3, 1., 2.3), 'CE + lam CE(old head, p(y_s|y_t))', 'You et al., NeurIPS 2020', 'head'),
    r3f=Strategy(lambda lam, src, **kw: [R3F(lam, **kw)], (.1, 1., 10.), 'CE + lam symKL(p(x), p(x + e))', 'Aghajanyan et al., arXiv 2008.03156'),
    # recipes
    linear_probe=Strategy(lambda lam, src, **kw: [LinearProbe(**kw)], (), 'CE, only the head trains', 'Kumar et al., ICLR 2022'),
    lp_ft=Strategy(lambda lam, src, **kw: [LPFT(int(lam), **kw)], (1., 3., 6.), 'CE, only the head trains for lam epochs', 'Kumar et al., ICLR 2022'),
    layer_decay=Strategy(lambda lam, src, **kw: [LayerDecay(1/(1 + lam), **kw)], (.33, 1., 3.), 'CE, learning rate (1 + lam)^-depth', 'Clark et al., ELECTRA, ICLR 2020'),
    frozen_bn=Strategy(lambda lam, src, **kw: [FrozenBN(**kw)], (), "CE, batch norm keeps the source's statistics", 'common in detection'),
    wise_ft=Strategy(lambda lam, src, **kw: [WiSEFT(1 - lam, **kw)], (.1, .3, .5), 'CE, then w = lam w_0 + (1 - lam) w', 'Wortsman et al., CVPR 2022'),
    lora=Strategy(lambda lam, src, **kw: [LoRA(**kw)], (), 'CE, w = w_0 + a/r B A', 'Hu et al., ICLR 2022'),
    replay=Strategy(lambda lam, src, **kw: [Replay(lam, src.batches, src.head, **kw)], (.1, .3, 1.), 'CE + lam CE on source clips: an upper bound, it sees the source', 'Rebuffi et al., CVPR 2017, and many', 'batches, head'),
)
