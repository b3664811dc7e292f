"Both tables of the paper, end to end on a miniature UCF101 and HMDB51 with synthetic checkpoints of the documented form."
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from official import write_hmdb, write_ucf

from sdfast.models.encoders import c3d, r2plus1d

ROOT = Path(__file__).parents[2]
SMALL = dict(frames=8, size=16, epochs=2, clips=2, bs=4, workers=0, lams='100')


def run(*args):
    "The script as a process"
    options = [f'--{k}={v}' for k, v in SMALL.items()]
    return subprocess.run([sys.executable, str(ROOT/'experiments/paper_tables.py'), *map(str, args), *options], capture_output=True, text=True, timeout=1800, env=os.environ | dict(COLUMNS='200'))


@pytest.fixture
def call(script, capsys, monkeypatch):
    "The script in this process: its output"
    monkeypatch.setenv('COLUMNS', '200')
    def call(table, **args):
        script.main(table, **SMALL | {k:str(v) if isinstance(v, Path) else v for k, v in args.items()})
        return capsys.readouterr().out
    return call


@pytest.fixture(scope='module')
def there(tmp_path_factory):
    "Data and weights"
    root = tmp_path_factory.mktemp('paper')
    write_ucf(root/'data', per_group=1), write_hmdb(root/'data')
    (root/'weights').mkdir()
    for name, make in dict(rspnet_c3d=c3d, rspnet_r21d=r2plus1d).items():
        torch.manual_seed(0)
        model = {f'encoder_q.encoder.{k.removeprefix("body.")}':v for k, v in make().state_dict().items()} | {'encoder_q.fc1.2.weight': torch.zeros(128, 512)}
        torch.save(dict(epoch=200, arch=name, model=model, best_loss=np.float64(1)), root/'weights'/f'{name}.pth.tar')
    return root


@pytest.fixture(scope='module')
def done(there):
    p = run('table2', '--data', there/'data', '--weights', there/'weights', '--out', there/'out', '--allow-missing')
    assert p.returncode == 0, p.stderr[-2000:]
    return p, there/'out'


@pytest.fixture(scope='module')
def script():
    import importlib.util
    spec = importlib.util.spec_from_file_location('paper_tables', ROOT/'experiments/paper_tables.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['paper_tables'] = module
    spec.loader.exec_module(module)
    return module


def test_table_2(done):
    p, out = done
    t, runs = pd.read_csv(out/'table2.csv'), pd.read_csv(out/'table2_runs.csv')
    assert len(t) == 2*2*2*3 and len(runs) == 2*2*2*2 and set(runs.status) <= {'ok', 'diverged'} and (runs.status == 'ok').sum() > 12
    assert set(t.selection) == {'last epoch', 'best on valid', 'paper protocol'}
    a = t[(t.encoder == 'r2plus1d') & (t.data == 'hmdb51') & (t.lam == 100)]
    assert set(a.printed_acc1) == {46.3} and set(a.printed_acc5) == {76.3}
    mine = runs[(runs.model == 'c3d') & runs.task.str.startswith('ucf101')]
    full, held = (mine[mine['select'] == s].set_index('lam') for s in ('paper', 'valid'))
    assert full.best_acc1.notna().all() and full.best_valid_acc1.isna().all() and held.best_valid_acc1.notna().all() and full.valid_acc1.isna().all()
    log = pd.read_csv(out/'runs'/full.key[100.]/'epochs.csv')
    assert {'test_accuracy', 'self_distill', 'self_distill_ratio'} <= set(log.columns) and 'accuracy' not in log.columns and len(log) == 2
    assert full.best_epoch[100.] == log.test_accuracy.idxmax()
    assert 'accuracy' in pd.read_csv(out/'runs'/held.key[100.]/'epochs.csv').columns
    for _, r in full.iterrows():  # one row a test video, in the classes of classInd.txt
        for p, file in (('', 'scores.csv'), ('best_', 'scores_best.csv')):
            s = pd.read_csv(out/'runs'/r.key/file)
            assert len(s) == 6 and list(s.columns) == ['path', 'label', 'Hammering', 'HammerThrow', 'HandstandPushups'] and np.allclose(s.iloc[:, 2:].sum(axis=1), 1, atol=1e-4)
            assert r[f'{p}acc1'] == pytest.approx((s.iloc[:, 2:].idxmax(axis=1) == s.label).mean()) and r[f'{p}acc5'] == 1


def mcnemar_by_hand(a, b):
    from math import comb
    n, k = int((a != b).sum()), int((a & ~b).sum())
    return min(1, 2*sum(comb(n, i) for i in range(min(k, n - k) + 1))/2**n) if n else 1.


@pytest.mark.parametrize('seeds', [1, 3])
def test_numbers_of_a_table_from_scores(script, tmp_path, seeds):
    "Made-up scores of 40 videos, so that models differ: each figure against one computed by hand"
    from scipy.stats import t as student
    rng, base = np.random.default_rng(0), script.Run(model='c3d', task='ucf101:x', source='', final=True)
    runs = [script.replace(base, lam=lam, seed=s, select=k, valid_frac=.2*(k == 'valid')) for lam in (0., 1., 10.) for s in range(seeds) for k in ('paper', 'valid')]
    cell, results, right = script.Cell('c3d', 'ucf101', runs), {}, {}
    for r in runs:
        d, row = tmp_path/'runs'/r.key, dict(key=r.key, seed=r.seed, status='ok', n_test=40, best_valid_acc1=rng.random(), acc5=.9, best_acc5=.95)
        d.mkdir(parents=True)
        for best in (False, True):
            label, guess = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
            probs = np.eye(3)[guess]*.5 + .1
            pd.DataFrame(probs, columns=['0', '1', '2']).assign(path='x', label=label)[['path', 'label', '0', '1', '2']].to_csv(d/f'scores{"_best"*best}.csv', index=False)
            right[r.key, best] = guess == label
            row['best_acc1' if best else 'acc1'] = float((guess == label).mean())
        results[r.key] = row
    if seeds == 3: results[runs[-2].key]['status'] = 'diverged'  # lambda 10, the last seed, trained on all
    t = script.measure([cell], results, tmp_path, (1., 10.), ['last', 'valid', 'paper'])
    assert len(t) == 9
    for _, r in t.iterrows():
        kind = {v:k for k, v in script.SELECTIONS.items()}[r.selection]
        mine = {q.seed:q.key for q in cell.select(r.lam, kind) if results[q.key]['status'] == 'ok'}
        ref = {q.seed:q.key for q in cell.select(0., kind)}
        acc = np.array([100*right[k, kind == 'paper'].mean() for k in mine.values()])
        assert r.runs == len(mine) and r.failed == seeds - len(mine) and r.acc1 == pytest.approx(acc.mean())
        if seeds > 1: assert r.acc1_high - r.acc1 == pytest.approx(student.ppf(.975, len(acc) - 1)*acc.std(ddof=1)/len(acc)**.5)
        else:
            p, n, z = acc[0]/100, 40, 1.959964
            assert r.acc1_low == pytest.approx(100*((p + z*z/2/n - z*np.sqrt(p*(1 - p)/n + z*z/4/n/n))/(1 + z*z/n)), abs=1e-3)  # Wilson
        if r.lam:
            assert r['diff'] == pytest.approx(np.mean([100*right[k, kind == 'paper'].mean() - 100*right[ref[s], kind == 'paper'].mean() for s, k in mine.items()]))
            assert r.mcnemar == pytest.approx(np.median([mcnemar_by_hand(right[k, kind == 'paper'], right[ref[s], kind == 'paper']) for s, k in mine.items()]))
    text = script.markdown(t, ['last', 'valid', 'paper'], ['a note'])
    assert '1 failed' in text if seeds == 3 else 'failed' not in text
    one = script.choose(t, ['last', 'valid', 'paper']).dropna(subset='lam')
    best = one[one.method == 'self-distillation'].set_index('selection').lam
    v, p = (t[(t.selection == script.SELECTIONS[k]) & (t.lam > 0)].set_index('lam') for k in ('valid', 'paper'))
    assert best['last epoch'] == best['best on valid'] == v.valid_acc1.idxmax() and best['paper protocol'] == p.acc1.idxmax()


def test_the_text_says_what_was_done(done):
    p, out = done
    text = (out/'table2.md').read_text()
    for word in ('**UCF101**', '**HMDB51**', '| C3D | baseline | 77.1 / 93.5 |', '| R(2+1)D | 100 | 46.3 / 76.3 |', "reduction='mean'", "teacher_bn='batch'", 'paper protocol', "Wilson's",
                 'its lists name 9 train and 6 test videos, not the official 9537 and 3783', 'NOT the paper\'s protocol', 'epochs 2 instead of 100', 'rspnet_c3d.pth.tar'):
        assert word in text, word
    assert text.strip() in '\n'.join(l.rstrip() for l in p.stdout.splitlines()) or 'R(2+1)D | 100 | 46.3' in p.stdout


def test_table_1_has_the_same_runs_and_chooses_lambda(done, there, call):
    _, out = done
    text = call('table1', data=there/'data', weights=there/'weights', out=out, allow_missing=True)
    assert text.count('finished before') == (pd.read_csv(out/'table2_runs.csv').status == 'ok').sum() > 0
    t1, t2 = pd.read_csv(out/'table1.csv'), pd.read_csv(out/'table2.csv')
    assert (t1[t1.method == 'Pace'].printed_acc1 == [77.1]*3 + [36.6]*3).all() and t1[t1.method == 'Pace'].acc1.isna().all()
    ours = t1[t1.method == 'self-distillation']
    assert len(ours) == 2*2*3 and set(ours.printed_acc1) == {78.6, 45.8, 82.3, 47.3} and set(ours.printed_acc5) == {94.6, 76.5, 96.3, 77.8}
    pd.testing.assert_series_equal(ours.acc1.reset_index(drop=True), t2[t2.lam > 0].acc1.reset_index(drop=True))  # one lambda: nothing to choose
    assert '| C3D | MAS | 61.2 / – |' in (out/'table1.md').read_text() and 'λ of table 1' in text and '; λ 100' in text


def test_missing_parts_are_empty_cells(done, there, call):
    out = done[1]
    text = call('table2', data=there/'data', weights=f'c3d={there/"weights/rspnet_c3d.pth.tar"}', out=out, allow_missing=True, selections='last,paper', seeds=2, datasets='ucf101')
    assert 'no weights of R(2+1)D' in text and text.count('finished before') <= 2
    table = (out/'table2.md').read_text()
    assert re.search(r'\| R\(2\+1\)D \| 100 \| 82\.3 / 96\.3 \|  \|  \|', table) and 'HMDB51' not in table.split('\n-')[0] and "Student's t over 2 seeds" in table and 'best on valid' not in table
    t = pd.read_csv(out/'table2.csv')
    assert set(t[t.encoder == 'c3d'].runs) == {2} and t[t.encoder == 'r2plus1d'].acc1.isna().all()


def test_dry_run_needs_nothing(there, tmp_path, call):
    text = call('table2', dry_run=True, out=tmp_path/'x', data=there/'data', allow_missing=True, encoders='c3d')
    assert 'no weights' in text and 'hours in all on this machine' in text and not (tmp_path/'x').exists()
    # 2 epochs x (baseline and a lambda) x (9 train clips, and 7 of them, in batches of 4)
    assert re.search(r'C3D +│ UCF101 +│ +4 +│ +0 +│ +2 +│ +12 ', text), text
    text = call('table1', dry_run=True, out=tmp_path/'x', encoders='c3d', datasets='hmdb51')
    assert re.search(r'HMDB51 +│ +4 +│ +0 +│ +2 +│ +6,424 .* no data', text), text  # 2 x 2 x (3570 and 2856 clips in batches of 4)


BAD = [(['table3'], "unknown 'table3'"), (['table2', '--data', 'nowhere'], 'folder nowhere does not exist'), (['table2'], 'nothing can be run: UCF101 is not in --data'),
       (['table2', '--lams', '0'], 'above 0'), (['table2', '--reduction', 'max'], "unknown 'max'"), (['table2', '--weights', 'no'], 'neither a folder nor'),
       (['table2', '--weights', 'resnet=x'], "unknown encoder 'resnet'"), (['table2', '--weights', 'c3d=no.pth'], 'no.pth do not exist'), (['table2', '--schedule', 'linear'], 'unknown schedule'),
       (['table2', '--seeds', '0'], '--seeds'), (['table2', '--fold', '4'], '--fold must be 1, 2 or 3'), (['table2', '--valid-frac', '1'], '--valid-frac'), (['table2', '--selections', 'best'], "unknown 'best'"),
       (['table2', '--encoders', ''], '--encoders must name')]


@pytest.mark.parametrize('args,word', BAD, ids=[' '.join(a) for a, _ in BAD])
def test_bad_input_is_one_line_and_status_2(script, capsys, args, word):
    args = dict(table=args[0]) | {k[2:].replace('-', '_'):v for k, v in zip(args[1::2], args[2::2])}
    kinds = dict(seeds=int, fold=int, valid_frac=float)
    with pytest.raises(SystemExit) as e: script.main(**{k:kinds.get(k, str)(v) for k, v in args.items()})
    err = capsys.readouterr().err
    assert e.value.code == 2 and word in err and err.count('\n') == 1


def test_printed_numbers_are_the_papers(script):
    "Against the tables as typed a second time"
    c3d_, r = script.PRINTED, script.PRINTED
    assert [c3d_['c3d', 'ucf101', l][0] for l in (0, .1, 1, 10, 100, 1000)] == [77.1, 76.7, 77.1, 77.9, 78.6, 77.5]
    assert [c3d_['c3d', 'hmdb51', l][0] for l in (0, .1, 1, 10, 100, 1000)] == [43.9, 45.8, 43.9, 44.2, 42.9, 41.4]
    assert [r['r2plus1d', 'ucf101', l][0] for l in (0, .1, 1, 10, 100, 1000)] == [80.2, 80.8, 80.3, 81.4, 82.3, 81.5]
    assert [r['r2plus1d', 'hmdb51', l][0] for l in (0, .1, 1, 10, 100, 1000)] == [44.1, 44.8, 43.3, 45.6, 46.3, 47.3]
    assert [r['r2plus1d', 'hmdb51', l][1] for l in (0, .1, 1, 10, 100, 1000)] == [75.6, 74.3, 75.1, 76.1, 76.3, 77.8] and len(script.PRINTED) == 24


def test_steps_an_epoch_of_the_paper():
    "24 and 32 clips a batch, the last short one dropped"
    assert [n//24 for n in (9537, 3570)] == [397, 148] and [n//32 for n in (9537, 3570)] == [298, 111]
