"The paper's printed numbers, and where data and weights are found."
import pytest

from sdfast.errors import InputError
from sdfast.study.paper import PRINTED, PaperStudy, find_data, find_weights

LAMS = (0, .1, 1, 10, 100, 1000)
# typed a second time from the paper
TYPED_AGAIN = [('c3d', 'ucf101', 0, [77.1, 76.7, 77.1, 77.9, 78.6, 77.5]),
               ('c3d', 'hmdb51', 0, [43.9, 45.8, 43.9, 44.2, 42.9, 41.4]),
               ('r2plus1d', 'ucf101', 0, [80.2, 80.8, 80.3, 81.4, 82.3, 81.5]),
               ('r2plus1d', 'hmdb51', 0, [44.1, 44.8, 43.3, 45.6, 46.3, 47.3]),
               ('r2plus1d', 'hmdb51', 1, [75.6, 74.3, 75.1, 76.1, 76.3, 77.8])]


@pytest.mark.parametrize('encoder,data,top,values', TYPED_AGAIN)
def test_printed_numbers_are_the_papers(encoder, data, top, values):
    assert [PRINTED[encoder, data, lam][top] for lam in LAMS] == values


def test_every_cell_is_printed(): assert len(PRINTED) == 2*2*6


def test_steps_an_epoch_of_the_paper():
    "24 and 32 clips a batch, the last short one dropped"
    assert [n//24 for n in (9537, 3570)] == [397, 148]
    assert [n//32 for n in (9537, 3570)] == [298, 111]


def test_data_is_found_in_its_own_folder_or_below_the_root(tmp_path):
    assert find_data(tmp_path, 'ucf101') is None
    (tmp_path/'hmdb51'/'hmdb51_org').mkdir(parents=True)
    (tmp_path/'UCF-101').mkdir()
    assert find_data(tmp_path, 'ucf101', 2, 'lists', True) == f'ucf101:{tmp_path},fold=2,splits=lists,allow_missing=1'
    assert find_data(tmp_path, 'hmdb51') == f'hmdb51:{tmp_path},fold=1'
    assert find_data(tmp_path/'hmdb51', 'hmdb51') == f'hmdb51:{tmp_path}/hmdb51,fold=1'


def test_weights_are_found_by_name(tmp_path):
    assert find_weights(None, 'c3d') is None
    assert find_weights(str(tmp_path), 'c3d') is None
    (tmp_path/'RSPNet_R21D.pth').touch()
    assert find_weights(str(tmp_path), 'r2plus1d') == str(tmp_path/'RSPNet_R21D.pth')
    assert find_weights(f'c3d={tmp_path}/RSPNet_R21D.pth', 'c3d') == f'{tmp_path}/RSPNet_R21D.pth'
    (tmp_path/'other_r2plus1d.pth').touch()
    with pytest.raises(InputError, match='could all be r2plus1d; name one: r2plus1d=FILE'):
        find_weights(str(tmp_path), 'r2plus1d')


@pytest.mark.parametrize('selections,variants', [
    (('last',), [(0., 'last')]), (('paper',), [(0., 'paper')]), (('last', 'paper'), [(0., 'paper')]),
    (('valid',), [(.2, 'valid')]), (('last', 'valid', 'paper'), [(0., 'paper'), (.2, 'valid')])])
def test_runs_of_a_cell(selections, variants):
    "Last epoch and paper protocol share a run, a held-out part needs its own"
    study = PaperStudy(encoders=['c3d'], datasets=['hmdb51'], lams=[10.], seeds=2, selections=selections)
    (cell,), notes = study.plan()
    assert cell.missing == 'no data'
    assert len(notes) == 2
    found = [(r.lam, r.seed, r.valid_frac, r.select) for r in cell.runs]
    assert found == [(lam, seed, *v) for lam in (0., 10.) for seed in (0, 1) for v in variants]
    assert {(r.lr, r.bs, r.epochs, r.clips) for r in cell.runs} == {(.005, 24, 100, 10)}
    for kind in selections: assert len(cell.select(10., kind)) == 2
