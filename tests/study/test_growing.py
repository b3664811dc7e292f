"Chains with one head for all classes so far: how it is numbered, trained, measured and merged."
import shutil
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from helpers import data, learner, model, same, state
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from sdfast.commands import sequence
from sdfast.data.datasets import create_task
from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.models.features import extract
from sdfast.strategies import STRATEGIES, LwF, Replay
from sdfast.study import merge as merge_module
from sdfast.study.accuracies import Accuracies
from sdfast.study.chain import train_chain
from sdfast.study.compare_chains import compare_sequences
from sdfast.study.execute import copy_rows
from sdfast.study.loaders import joint_classes, target_data
from sdfast.study.merge import merge_tasks
from sdfast.study.merge_chains import check_merges, merge_chains
from sdfast.study.source import load_source
from sdfast.study.stage import stage_folder

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def folders(clips, tmp_path):
    "Class folders of the same videos, with one class of the source and a new one, and with two new ones"
    made = []
    for name, (right, down) in dict(one=('right', 'south'), two=('east', 'north')).items():
        for kind, label in (('right', right), ('down', down)): shutil.copytree(clips/kind, tmp_path/name/label)
        made.append(f'folder:{tmp_path/name},group=(p\\d)_')
    return made


@pytest.fixture
def growing(bases, folders):
    "A growing chain of two tasks after the source, whose classes are down and right"
    source, (one, two) = bases[0].source, folders
    return [replace(bases[0], task=one, earlier=source), replace(bases[0], task=two, earlier=f'{source};{one}')]


def start(runs, out): return replace(load_source(runs[0], out), retention=None), out, Accuracies(runs)


def chain(runs, **changes): return [replace(r, final=True, **changes) for r in runs]


def stored(row, out, run):
    folder = stage_folder(row['key'], out)
    net = create_model(run.model, len(target_data(run)[1].vocab), **run.options())
    net[0].load_state_dict(load_file(folder/'encoder.safetensors'))
    net[1].load_state_dict(load_file(folder/'head.safetensors'))
    return net.eval()


# ---- labels and head

def test_loaders_number_the_classes_of_earlier_tasks_first(growing):
    vocabs = [list(target_data(r)[1].vocab) for r in growing]
    assert vocabs == [['down', 'right', 'south'], ['down', 'right', 'south', 'east', 'north']]
    for run, numbers in zip(growing, ({1, 2}, {3, 4})):
        task, dls, test = target_data(run)
        assert {int(y) for _, ys in [*dls.train, *dls.valid, *test] for y in ys} == numbers
        assert len(task.vocab) == 2
        names = [dls.vocab[int(y)] for _, ys in test for y in ys]
        assert names == [label for _, label in task.items('test')]
        assert {y for _, ys in task.torch_dl('test', frames=2, size=16) for y in ys.tolist()} == numbers
    assert joint_classes(*(target_data(r)[0] for r in growing)) == ('right', 'south', 'east', 'north')


def test_the_head_keeps_what_it_had(growing, tmp_path, monkeypatch):
    seen = []
    def fit(dls, net, *args, **kwargs):
        seen.append(state(net[1]))
        raise InputError('seen')
    monkeypatch.setattr('sdfast.study.execute.fit_model', fit)
    source, out, accuracies = start(growing, tmp_path)
    train_chain(chain(growing[:1]), source, out, accuracies)
    old, grown = source.model[1].state_dict(), seen[0]
    for k, v in old.items(): assert torch.equal(grown[k][:2], v.cpu())
    assert len(grown['weight']) == 3 and grown['weight'][2].abs().sum() > 0


def test_rows_are_copied():
    old, new = torch.nn.Linear(4, 2), torch.nn.Linear(4, 5)
    before = state(new)
    copy_rows(old, new)
    assert torch.equal(new.weight[:2], old.weight) and torch.equal(new.bias[:2], old.bias)
    assert torch.equal(new.weight[2:], before['weight'][2:]) and torch.equal(new.bias[2:], before['bias'][2:])


def test_accuracies_are_among_all_classes_so_far(growing, tmp_path):
    source, out, accuracies = start(growing, tmp_path)
    runs = chain(growing)
    rows = train_chain(runs, source, out, accuracies)
    assert [r['status'] for r in rows] == ['ok', 'ok']
    assert 'head.two' not in rows[0] and {'head.source', 'head.one', 'head.two'} <= rows[1].keys()
    net = stored(rows[1], tmp_path, runs[1])
    assert len(net[1].weight) == 5
    for name, dl in zip(accuracies.names, accuracies.test):
        x, y = extract(net[0], dl)
        with torch.no_grad(): right = (net[1](x).argmax(1) == y).double().mean().item()
        assert rows[1][f'head.{name}'] == right
    assert same(source.model[0].state_dict(), load_source(runs[0], tmp_path).model[0].state_dict())


NAMES = 'self_distill', 'lwf', 'replay', 'l2sp', 'kl_base', 'flow', 'byot', 'pskd', 'lora'


@pytest.mark.parametrize('strategy', NAMES)
def test_strategies_train_with_a_growing_head(growing, tmp_path, strategy):
    runs = chain(growing, strategy=strategy, lam=(*STRATEGIES[strategy].lams, 0.)[0], epochs=1)
    rows = train_chain(runs, *start(growing, tmp_path))
    assert [(r['status'], r['error']) for r in rows] == [('ok', '')]*2


# ---- strategies with the shared head

def shared(cls, *args, **kwargs):
    net = model()
    net[1] = torch.nn.Linear(6, 3)
    return net, cls(*args, shared_head=True, **kwargs)


def test_lwf_compares_the_models_own_outputs_for_older_classes():
    torch.manual_seed(3)
    old = torch.nn.Linear(6, 2)
    net, lwf = shared(LwF, 2., old)
    terms = []
    class Look(LwF):
        def term(self):
            value = super().term()
            logits, teacher = self.loop.outputs[:, :2], old(self.pairs()[0][0].inputs(old)[1])
            log_p, log_q = log_softmax(logits/2, 1), log_softmax(teacher/2, 1)
            terms.append((value.item(), 4*kl_div(log_p, log_q, reduction='batchmean', log_target=True).item()))
            return value
    learn = learner(Look(2., old, shared_head=True), data(), net)
    with learn.no_bar(): learn.fit(1)
    assert len(terms) == 6 and min(v for v, _ in terms) > 1e-4
    for value, by_hand in terms: assert value == pytest.approx(by_hand, rel=1e-5)


def test_the_shared_head_learns_from_both(monkeypatch):
    "Its gradient is that of the task's loss and of the term"
    torch.manual_seed(3)
    dls, old = data(), torch.nn.Linear(6, 2)
    def lwf(lam): return LwF(lam, old, shared_head=True)
    def replay(lam): return Replay(lam, data(seed=9).valid, None, shared_head=True)
    for make in (lwf, replay):
        heads = []
        for lam in (0., 3.):
            learn = learner(make(lam), dls, model())
            with learn.no_bar(): learn.fit(1)
            heads.append(state(learn.model[1]))
        assert not same(*heads)


def test_replay_trains_the_shared_head_on_older_clips():
    net, source = model(), data(seed=9).valid
    terms = []
    class Look(Replay):
        def _loss_of(self, logits, y):
            value = super()._loss_of(logits, y)
            terms.append((value.item(), cross_entropy(logits, y).item(), logits.requires_grad, logits.shape[1]))
            return value
    learn = learner(Look(1., source, None, shared_head=True), data(), net)
    with learn.no_bar(): learn.fit(1)
    assert terms and all(a == b and grad and n == 3 for a, b, grad, n in terms)
    with pytest.raises(InputError, match='Sequential'):
        class Whole(torch.nn.Module):
            def __init__(self): super().__init__(); self.encoder, self.head = model()
            def forward(self, x): return self.head(self.encoder(x))
        learn = learner(Replay(1., source, None, shared_head=True), data(), Whole())
        with learn.no_bar(): learn.fit(1)


def test_lwf_refuses_a_head_that_lacks_the_older_classes():
    learn = learner(LwF(1., torch.nn.Linear(6, 4), shared_head=True), data(), model())
    with pytest.raises(InputError, match="the source's classes as first columns"), learn.no_bar(): learn.fit(1)


# ---- merged

def test_a_merged_head_has_the_rows_of_each_task(growing, tmp_path):
    source, out, accuracies = start(growing, tmp_path)
    runs = chain(growing)
    rows = merge_tasks(runs, source, out, accuracies, 'task_arithmetic', .5)
    assert [r['status'] for r in rows] == ['ok', 'ok']
    singles = [train_chain([r], source, out, Accuracies([r]))[0] for r in runs]
    nets = [stored(row, tmp_path, r) for row, r in zip(singles, runs)]
    head = merge_module._join([source.model[1], *(net[1] for net in nets)], [target_data(r) for r in runs])
    # down is of the source; right was trained last with task one
    wanted = [source.model[1].weight[0], *nets[0][1].weight[1:3], *nets[1][1].weight[3:5]]
    assert torch.equal(head.weight.cpu(), torch.stack([w.detach().cpu() for w in wanted]))


def test_a_study_of_growing_chains_with_merges(growing, tmp_path):
    grids = dict(finetune=[dict(lr=.05), dict(lr=.02)])
    rows = compare_sequences(growing, grids, tmp_path, seeds=2, merge=partial(merge_chains, ['ties']))
    merged = rows[rows.strategy == 'finetune+ties']
    assert len(merged) == 2*(3 + 2) and set(merged.status) == {'ok'}
    assert list(rows.strategy.tail(2)) == ['untouched', 'random']
    valid = [c for c in rows if c.startswith('valid.')]
    trials = merged[~merged.final & (merged.stage == 2)].groupby('lam', sort=False)[valid].mean().mean(axis=1)
    best = trials[trials == trials.max()].index[-1]
    assert set(merged[merged.final].lam) == {best}
    lr = rows[rows.final & (rows.strategy == 'finetune')].lr.iloc[0]
    assert set(merged.lr) == {lr}
    again = compare_sequences(growing, grids, tmp_path, seeds=2, merge=partial(merge_chains, ['ties']))
    pd.testing.assert_frame_equal(rows, again)


def test_names_of_merges():
    assert check_merges('') == [] and check_merges('ties, ties,task_arithmetic') == ['ties', 'task_arithmetic']
    with pytest.raises(InputError, match='--merges: unknown method'): check_merges('soup')


# ---- from the command line

def test_a_growing_chain_from_the_command_line(clips, folders, tmp_path, capsys):
    source = f'folder:{clips},group=(p\\d)_'
    arguments = ['--source', source, '--tasks', ';'.join(folders), '--quick', '--growing', '--merges', 'ties',
                 '--strategies', 'lwf', '--out', str(tmp_path/'out'), '--size', '24', '--bs', '4', '--jobs', '1']
    assert sequence.main(arguments) == 0
    text = (tmp_path/'out'/'table.md').read_text()
    assert 'answers are among all of them' in text and 'finetune+ties' in text
    assert 'Each task has its own head' not in text


# ---- classes of a task

def test_a_part_of_the_classes(clips, folders):
    task = create_task(f'folder:{clips},group=(p\\d)_')
    some = create_task(f'{folders[0]},classes=0-1')
    assert some.vocab == ['right', 'south'] and some.name.endswith('one 0-1')
    for bad in ('0', '1-0', '0-2', 'a-b', '0-0', '-1-1'):
        with pytest.raises(InputError, match='classes must be FIRST-LAST'):
            create_task(f'folder:{clips},group=(p\\d)_,classes={bad}')
    assert task.vocab == ['down', 'right']
    with pytest.raises(InputError, match='an option twice'): create_task(f'folder:{clips},classes=0-1,classes=0-1')


@pytest.mark.parametrize('first, last, motions', [(0, 11, 2), (12, 17, 1)])
def test_classes_of_the_embedded_videos(first, last, motions):
    whole = create_task('moving_digits,part=source')
    part = create_task(f'moving_digits,part=source,classes={first}-{last}')
    assert part.vocab == whole.vocab[first:last + 1] and len({c[0] for c in part.vocab}) == motions
    assert part.count('test') == whole.count('test')*(last - first + 1)//60
    assert part.fingerprint != whole.fingerprint
