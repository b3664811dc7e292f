"The runs of a protocol, and how it chooses settings"
import pickle
from dataclasses import replace

import numpy as np
import pytest

from sdfast.errors import InputError
from sdfast.study.config import Run
from sdfast.study.protocol import ProtocolPlan, make_arm

LRS, PLAIN_LRS = (.1, .2), (.05, .1, .2, .4)


def make_protocol(**given):
    arms = {name:make_arm(name, LRS, PLAIN_LRS, lams) for name, lams in
            dict(finetune=None, self_distill=(10, 30), lp_ft=(1, 3)).items()}
    return ProtocolPlan(Run(), arms, **dict(nets=range(2), seeds=3) | given)


def results(protocol, score):
    "Rows of all trials; `score(run)` is the accuracy on valid, and those of old head and probe"
    rows = []
    for run in protocol.first():
        valid, old, probe = score(run)
        rows.append(dict(key=run.key, valid_acc1=valid, valid_source_acc=old, valid_source_probe=probe))
    return rows


def test_every_arm_has_as_many_trials():
    assert make_arm('self_distill', LRS, PLAIN_LRS, (10, 30)) == [
        dict(strategy='self_distill', lam=lam, lr=lr) for lam in (10, 30) for lr in (.2, .1)]
    assert make_arm('finetune', LRS, PLAIN_LRS) == [dict(strategy='finetune', lr=lr) for lr in (.4, .2, .1, .05)]
    stopped = make_arm('early_stopping', (.1, .2, .3), PLAIN_LRS)
    assert len(stopped) == 9 and {s['patience'] for s in stopped} == {1, 2, 3}
    with pytest.raises(InputError, match='unknown strategy'): make_arm('fintune', LRS, PLAIN_LRS)
    with pytest.raises(InputError, match='same number of trials, not finetune 4, l2sp 2'):
        ProtocolPlan(Run(), dict(finetune=make_arm('finetune', LRS, PLAIN_LRS), l2sp=make_arm('l2sp', LRS, (), (1,))))
    with pytest.raises(InputError, match='needs finetune'): ProtocolPlan(Run(), dict(l2sp=[]))
    with pytest.raises(InputError, match='twice'): ProtocolPlan(Run(), dict(finetune=[dict(lr=.1)]*2))


def test_trials_and_final_runs_share_source_models_and_no_seed():
    protocol = make_protocol(trial_seeds=2)
    trials = protocol.first()
    final = protocol(results(protocol, lambda run: (.9, .8, .8)))
    assert {r.source_seed for r in trials} == {r.source_seed for r in final} == {0, 1}
    assert {r.seed for r in trials} == {3, 4} and {r.seed for r in final} == {0, 1, 2}
    assert not any(r.final for r in trials) and all(r.final and r.source_valid for r in final)
    assert len({r.key for r in trials}) == len(trials) == 2*3*4*2
    assert len({r.source_key for r in trials + final}) == 2


def test_one_seed_has_the_barrier():
    protocol = make_protocol()
    with_barrier = replace(protocol, base=Run(with_barrier=True))
    def final(plan): return plan(results(plan, lambda run: (.9, .8, .8)))
    assert not any(r.with_barrier for r in with_barrier.first() + final(protocol))
    assert {r.with_barrier == (r.seed == 0) for r in final(with_barrier)} == {True}


def test_a_source_model_alone_has_the_runs_that_it_has_with_others():
    protocol = make_protocol()
    alone = replace(protocol, nets=(1,))
    assert alone.first() == [r for r in protocol.first() if r.source_seed == 1]
    def score(run): return .9, run.lr if run.source_seed else 1 - run.lr, .5
    both, one = (plan.choices(results(plan, score)) for plan in (protocol, alone))
    assert one == {k:v for k, v in both.items() if k[0] == 1}


def test_chooses_what_keeps_most_of_those_that_learn_as_well_as_plain_fine_tuning():
    def score(run):
        plain = {.4:.80, .2:.90, .1:.895, .05:.7}
        if run.strategy == 'finetune': return plain[run.lr], 1 - run.lr, 1 - run.lr
        # 30 keeps more than 10, but at lr .1 it learns too little
        if run.strategy == 'self_distill': return .895 - .015*((run.lam, run.lr) == (30, .1)), run.lam/100, 1 - run.lr
        return .5 + run.lr, .99, .99  # lp_ft learns less well at every setting
    protocol = make_protocol()
    rows = results(protocol, score)
    chosen = protocol.choices(rows)
    def setting(arm, rule): return protocol.arms[arm][chosen[0, arm, rule]]
    assert setting('finetune', 'kept')['lr'] == .1 and setting('finetune', 'accuracy')['lr'] == .2
    assert setting('self_distill', 'kept') == dict(strategy='self_distill', lam=30, lr=.2)
    assert setting('lp_ft', 'kept')['lr'] == .2  # its most accurate
    assert pickle.loads(pickle.dumps(protocol))(rows) == protocol(rows)
    assert len(protocol(rows)) == 2*3*(2 + 1 + 1)  # both rules choose the same of two arms


def test_each_source_model_has_its_own_choice():
    def score(run): return .9, run.lr if run.source_seed else 1 - run.lr, .5
    chosen = make_protocol().choices(results(make_protocol(), score))
    assert chosen[0, 'finetune', 'kept'] == 3 and chosen[1, 'finetune', 'kept'] == 0


def test_a_failed_trial_is_not_chosen():
    def score(run): return (None, None, None) if run.lr == .4 and run.seed == 4 else (.9, run.lr, run.lr)
    protocol = make_protocol(trial_seeds=2)
    chosen = protocol.choices(results(protocol, score))
    assert protocol.arms['finetune'][chosen[0, 'finetune', 'kept']]['lr'] == .2


def test_both_accuracies_count_alike():
    def score(run): return .9, .5 + run.lr, .9 - run.lr if run.lr < .4 else .6
    protocol = make_protocol()
    chosen = protocol.choices(results(protocol, score))
    scores = {lr:np.mean([.5 + lr, .9 - lr if lr < .4 else .6]) for lr in PLAIN_LRS}
    assert protocol.arms['finetune'][chosen[0, 'finetune', 'kept']]['lr'] == max(scores, key=scores.get)
