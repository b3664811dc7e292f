"Ways to fine-tune: each a fastai `Callback`, listed in `STRATEGIES` for the scripts and the docs."
from dataclasses import dataclass
from typing import Callable

from .anchor import EWC, L2SP, Fisher, empirical_fisher
from .distill import EMATeacher, FixedTeacher, SelfDistill, Teacher, feature_distance
from .penalty import Anchored, FeaturePenalty, Penalty, find_encoder

__all__ = ['EWC', 'L2SP', 'Fisher', 'empirical_fisher', 'EMATeacher', 'FixedTeacher', 'SelfDistill', 'Teacher', 'feature_distance',
           'Anchored', 'FeaturePenalty', 'Penalty', 'find_encoder', 'Strategy', 'STRATEGIES']


@dataclass(frozen=True)
class Strategy:
    "A row of the registry"
    callbacks: Callable  # (lam, fisher) -> list of callbacks, fisher a function that computes the source task's `Fisher`
    lams: tuple  # strengths to choose from, weak to strong
    formula: str
    source: str


STRATEGIES = dict(
    finetune=Strategy(lambda lam, fisher: [], (), 'CE', 'plain fine-tuning'),
    self_distill=Strategy(lambda lam, fisher: [SelfDistill(lam)], (3., 10., 30.), 'CE + lam mean (f - f_epoch)^2',
                          'Zhou et al., Preserve Pre-trained Knowledge: Transfer Learning with Self-Distillation for Action Recognition'),
    fixed_teacher=Strategy(lambda lam, fisher: [FixedTeacher(lam)], (.3, 1., 3.), 'CE + lam mean (f - f_0)^2', 'Mukhoti et al., TMLR 2024'),
    ema_teacher=Strategy(lambda lam, fisher: [EMATeacher(lam)], (1., 3., 10.), 'CE + lam mean (f - f_ema)^2', 'Tarvainen & Valpola, NeurIPS 2017'),
    l2sp=Strategy(lambda lam, fisher: [L2SP(lam)], (.01, .03, .1), 'CE + lam/2 sum (w - w_0)^2', 'Li et al., ICML 2018'),
    ewc=Strategy(lambda lam, fisher: [EWC(lam, fisher(), normalize=True)], (.01, .03, .1), 'CE + lam/2 sum F (w - w_0)^2, mean F = 1',
                 'Kirkpatrick et al., PNAS 2017'),
)
