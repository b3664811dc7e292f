"The times and costs on the page of experiments are those of the committed benchmarks."
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import prose

from sdfast.report.summary import summary
from sdfast.report.tables import strategy_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT/'experiments/results'
NETS = dict(r2plus1d_18='R(2+1)D-18', r2plus1d="the paper's R(2+1)D", c3d='C3D')


@pytest.fixture(scope='module')
def page(): return prose(ROOT/'experiments/README.md')


def benchmark(name): return json.loads((RESULTS/'benchmarks'/f'{name}.json').read_text())


def table_row(cells): return '| ' + ' | '.join(cells) + ' |'


def test_watching(page):
    cost = json.loads((RESULTS/'retention_curve.json').read_text())
    assert cost['ratio'] < 1.1
    assert cost['share'] < .1
    assert 'less than a tenth' in prose(ROOT/'README.md')
    assert cost['share'] == pytest.approx(np.median([r['share'] for r in cost['rows']]))
    assert cost['ratio'] == pytest.approx(np.median([r['ratio'] for r in cost['rows']]))
    assert f'{cost["ratio"]:.2f} times as long' in page
    assert f'{100*cost["share"]:.1f} % of the time' in page
    assert f'{cost["clips"]} clips' in page
    assert f'{cost["low"]:.2f} to {cost["high"]:.2f}' in page


# ---- what protection costs

def test_memory_that_is_returned(page):
    nets = benchmark('step_112')['models'].values()
    ratios = [r[f'{way}_handing_back']['ratio']/r[way]['ratio'] for way in ('plain', 'self_distill') for r in nets]
    plain, distilled = ratios[:len(nets)], ratios[len(nets):]
    text = (f'a plain step takes {min(plain):.2f} to {max(plain):.2f} times as long when freed memory is returned, '
            f'and a step of self-distillation {min(distilled):.2f} to {max(distilled):.2f} times')
    assert text in page


@pytest.mark.parametrize('size, rounds', [(112, 3), (56, 7)])
@pytest.mark.parametrize('net', NETS)
def test_steps(page, size, rounds, net):
    d = benchmark(f'step_{size}')
    assert (d['threads'], d['size'], d['rounds']) == (2, size, rounds)
    assert d['kept_freed_memory']
    r = d['models'][net]
    ways = ('fastai', 'plain_handing_back', 'self_distill_handing_back', 'self_distill', 'self_distill_bf16',
            'l2sp', 'ewc')
    median, least = (r['self_distill'][k]/r['fastai'][k] for k in ('median', 'min'))
    added = ', '.join(f'+{r[way]["added"]:.3f}' for way in ('l2sp', 'ewc'))
    ratios = [f'{r[way]["ratio"]:.2f}' for way in ways]
    name = f'{NETS[net]}, {d["frames"]}x{size}x{size}'
    assert table_row([name, *ratios, added, f'{median:.2f} ({least:.2f})']) in page
    # what the page says of goals
    is_full = size == 112
    assert (median <= 1) == is_full
    assert (least <= 1) == (is_full and net != 'c3d')
    assert r['self_distill']['ratio'] > 1.22
    assert (r['self_distill_bf16']['ratio'] <= 1.12) == (is_full and net == 'r2plus1d_18')
    for way in ('l2sp', 'ewc'): assert (round(r[way]['ratio'], 2) <= 1.02) == is_full


def test_precision_of_the_teacher(page): assert (RESULTS/'teacher_precision/table.md').read_text().rstrip() in page


def fisher_ratio(name, net, way): return benchmark(name)['models'][net]['ways'][way]['ratio']


def test_importance_of_the_tiny_net(page):
    fisher, mas, loop = (fisher_ratio('fisher_tiny', 'tiny', way) for way in ('fisher', 'mas', 'loop'))
    assert fisher > 1.4
    assert f'{fisher:.2f} (Fisher) and {mas:.2f} (MAS)' in page
    assert f'takes {loop:.1f};' in page


def test_importance_of_large_nets(page):
    nets = 'r2plus1d', 'r2plus1d_18', 'c3d'
    fisher, loop, mas = ([fisher_ratio('fisher', net, way) for net in nets] for way in ('fisher', 'loop', 'mas'))
    assert max(fisher) <= 1.4
    assert max(mas) <= 1.4
    text = ("{:.2f} with the paper's R(2+1)D, {:.2f} with R(2+1)D-18, {:.2f} with C3D, "
            'where the loop takes {:.2f}, {:.2f} and {:.2f}')
    assert text.format(*fisher, *loop) in page
    error = max(benchmark('fisher')['models'][net]['error'] for net in nets)
    assert f'by up to {100*error:.1f} %' in page
    assert benchmark('fisher_4')['chunk'] == 4
    four = [fisher_ratio('fisher_4', net, 'fisher') for net in nets]
    assert '{:.2f}, {:.2f} and {:.2f} ([fisher_4.json]'.format(*four) in page


def test_scale(page):
    seconds = {(r[''], r['n']): r['s'] for r in benchmark('scale')['rows']}
    steps = ('build', 'split', 'collect', 'report')
    build, split, collect, report = (seconds[f'videos: {step}', 100_000] for step in steps)
    assert (f'built into a task in {build:.1f} s, split in {split:.1f}, their answers collected in {collect:.1f} '
            f'and reported in {report:.1f} s') in page
    status, report = (seconds[f'runs: {what}', 9960] for what in ('status', 'report'))
    assert f'the status takes {status:.1f} s and the report {report:.1f}.' in page


def test_startup(page):
    start = {r['module']: r for r in benchmark('startup')['rows']}
    assert f'`import sdfast` takes {start["sdfast"]["median"]:.2f} s' in page
    assert f'{start["sdfast.all"]["ratio"]:.2f} times as long' in page


def test_throughput(page):
    rows = benchmark('throughput')['models']['tiny']['rows']
    def clips(name): return f'{rows[name]["plain"]:.0f}', f'{rows[name]["self_distill"]:.0f}'
    assert 'on {} clips of 8x40x40 a second, {} with self-distillation'.format(*clips('float32')) in page
    contiguous, compiled = clips('float32, contiguous'), clips('float32, compiled')
    assert 'default layout on {} and {}, compiled on {} and {}.'.format(*contiguous, *compiled) in page


# ---- what a study takes

def test_time_of_a_study(page):
    six, more = benchmark('study')['rows']
    minutes, seconds = divmod(round(six['seconds']), 60)
    assert six['workers'] == more['workers'] == 2
    assert six['seconds'] > 240
    assert not more['source']
    whole = f'`python experiments/compare.py` takes {minutes} min {seconds} s from an empty cache with two workers'
    parts = (f'{six["source"]:.0f} s to train the source, {six["runs"]:.0f} for the {six["n_runs"]} runs '
             f'and {six["beyond"]:.0f} to write the clips')
    assert whole in page
    assert parts in page
    assert f'after the study of six takes {more["seconds"]:.0f} s' in page
    assert f'{more["runs"]:.0f} s are its {more["n_runs"]} runs' in page


def test_time_of_a_quick_study(page):
    quick, _ = benchmark('study_quick')['rows']
    assert quick['n_runs'] == 24
    assert f'`--quick` takes {quick["seconds"]:.0f} s ([study_quick.json]' in page


def test_the_same_study_with_another_source_net(page):
    folder = RESULTS/'moving_digits_workers'
    table = summary(pd.read_csv(folder/'runs.csv'))
    assert (folder/'table.md').read_text() == strategy_table(table).to_markdown()
    old, new = pd.read_csv(RESULTS/'moving_digits/table.csv').set_index('strategy'), table.set_index('strategy')
    def lost(t, strategy): return f'{100*(t.source_acc["untouched"] - t.source_acc[strategy]):.1f}'
    untouched = f'{100*new.source_acc["untouched"]:.1f} instead of {100*old.source_acc["untouched"]:.1f}'
    plain = f'{lost(new, "finetune")} points instead of {lost(old, "finetune")}'
    distilled = f'{lost(new, "self_distill")} instead of {lost(old, "self_distill")}'
    assert (f'the untouched old head scores {untouched}. Of that, plain fine-tuning loses {plain}, '
            f'and self-distillation {distilled}.') in page
    others = ['self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']
    for t in (old, new):
        assert (t.source_acc_verdict[others] == 'better').all()
        assert (t.acc1_verdict[others] == 'not distinguishable').all()


# ---- what reading costs

READERS = dict(
    floor='floor', sdfast='sdfast', pyav='PyAV, straightforward code', torchcodec='torchcodec', decord='decord')


def readings(group):
    "Reader -> its numbers, for each of three runs"
    runs = [benchmark(f'decode_{i}') for i in (1, 2, 3)]
    return [{r['reader']: r for r in run['groups'][group]['readers']} for run in runs]


@pytest.fixture(scope='module')
def avi(): return readings('UCF101 AVI')


@pytest.fixture(scope='module')
def long(): return readings('H.264, long GOP')


def ratio(r):
    "A reader's time compared with the floor"
    if r['reader'] == 'floor': return '1'
    text = f'{r["ratio_to_floor"]:.2f}'
    return f'{text} [{r["low_to_floor"]:.2f}, {r["high_to_floor"]:.2f}]' if r['reader'] == 'sdfast' else text


@pytest.mark.parametrize('reader', READERS)
def test_reading(page, avi, long, reader):
    a, b = avi[0][reader], long[0][reader]
    assert table_row([READERS[reader], f'{a["ms_median"]:.2f}', ratio(a), f'{b["ms_median"]:.1f}', ratio(b)]) in page


def test_reading_three_times(page, avi, long):
    on_avi, on_long = ([r['sdfast']['ratio_to_floor'] for r in runs] for runs in (avi, long))
    assert max(on_avi) <= 1.5
    assert max(on_long) <= 1.15
    assert 'the three runs gave {:.2f}, {:.2f} and {:.2f} on the AVI'.format(*on_avi) in page
    assert 'and {:.2f}, {:.2f} and {:.2f} on H.264'.format(*on_long) in page
    faster = [r['decord']['slower_than_sdfast'] for r in avi]
    assert min(faster) >= 1.8
    assert f'sdfast is {min(faster):.1f} to {max(faster):.1f} times as fast as decord' in page


def test_loading(page):
    load = benchmark('loader')
    rate = {r['workers']: f'{r["clips_a_second"]:.0f}' for r in load['rows']}
    assert f'gives {rate["0"]} clips a second in the loading process itself' in page
    assert f'{rate["1"]}, {rate["2"]} and {rate["4"]} with 1, 2 and 4 workers' in page
    assert f'{rate["0, from memory"]} from memory' in page
    assert f'take {load["crossing"]["transforms_ms_a_clip"]:.1f} ms a clip' in page
