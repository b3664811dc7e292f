"The model before fine-tuning is trained once, stored, and read by all runs and processes."
from dataclasses import replace

import pytest
import torch
from helpers import Log, forget, same, small_run

from sdfast.data import block as block_module
from sdfast.models.encoders import create_model
from sdfast.models.weights import save_weights
from sdfast.runtime import store
from sdfast.study import fit as fit_module
from sdfast.study import source as source_module
from sdfast.study import source_files as source_files_module
from sdfast.study.source import load_source, untouched

pytestmark = pytest.mark.usefixtures('fresh')


def folder_of(run, out): return out/'source'/run.source_key


def test_the_source_stage_validates_nothing(longer, tmp_path, monkeypatch):
    "Nothing reads the validation, and the weights are the same with it"
    run, training, given = replace(longer, source_valid=True), [], block_module.MultiClip.before_batch
    def before_batch(self):
        training.append(self.training)
        given(self)
    monkeypatch.setattr(block_module.MultiClip, 'before_batch', before_batch)
    source = load_source(run, tmp_path/'without')
    assert training
    assert all(training)
    forget()
    training.clear()
    monkeypatch.setattr(fit_module.SkipValidation, 'before_validate', lambda self: None)
    assert load_source(run, tmp_path/'with').id == source.id
    assert not all(training)


def test_without_training_it_has_the_given_weights(base, tmp_path):
    model = create_model('tiny', 2, width=8)
    save_weights(model[0], tmp_path/'w.safetensors')
    run = replace(base, init=str(tmp_path/'w.safetensors'), source_epochs=0)
    source = load_source(run, tmp_path)
    for a, b in zip(model[0].state_dict().values(), source.model[0].state_dict().values()):
        assert torch.equal(a, b.cpu())
    reference = source.retention.reference
    assert reference.source_acc == pytest.approx(reference.source_probe)  # the head is the probe
    forget()
    assert load_source(run, tmp_path).id == source.id


def test_a_damaged_source_is_named_and_trained_again(longer, tmp_path):
    first = load_source(longer, tmp_path)
    file = folder_of(longer, tmp_path)/'encoder.safetensors'
    file.write_bytes(file.read_bytes()[:-10])
    forget()
    again = load_source(longer, tmp_path, log := Log())
    assert again.id == first.id
    assert 'encoder.safetensors is damaged' in log.lines[0]
    assert 'trained again' in log.lines[0]


# ---- importances

def test_importances_are_computed_once_and_read_by_others(longer, tmp_path, monkeypatch):
    first = load_source(longer, tmp_path)
    fisher, mas = first.fisher, first.mas
    forget()
    for n in ('empirical_fisher', 'mas_importance'): monkeypatch.setattr(source_module, n, lambda *a: 1/0)
    again = load_source(longer, tmp_path)
    for a, b in ((fisher, again.fisher), (mas, again.mas), (first.si, again.si)):
        assert a.n == b.n
        assert list(a.diag) == list(b.diag)
        assert same(a.diag, b.diag)
        assert same(a.anchor, b.anchor)


def test_a_damaged_importance_is_computed_again(longer, tmp_path, monkeypatch):
    load_source(longer, tmp_path).fisher
    next(folder_of(longer, tmp_path).glob('fisher-*')).write_bytes(b'damaged')
    forget()
    monkeypatch.setattr(source_module, 'empirical_fisher', lambda *a: 1/0)
    source = load_source(longer, tmp_path)
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match='fisher-.* is damaged.*computed again'):
        source.fisher


# ---- what the untouched encoder scores

def test_the_scores_of_the_untouched_encoder_need_no_clip(longer, tmp_path, monkeypatch):
    source = load_source(longer, tmp_path)
    monkeypatch.setattr(source_module, 'load_source', lambda *a: 1/0)
    known = untouched(longer, tmp_path)
    assert known.id == source.id
    assert known.reference == source.reference


def test_damaged_scores_are_measured_again(longer, tmp_path):
    reference = load_source(longer, tmp_path).reference
    file = source_files_module.reference_file(longer, tmp_path)
    file.write_text(file.read_text()[:-9])
    forget()
    assert untouched(longer, tmp_path, log := Log()).reference == reference
    assert 'measured again' in log.lines[0]
    assert store.read_json(file)['reference'] == reference


@pytest.fixture
def measured(longer, tmp_path):
    "A run whose source was measured, and the file of its answers"
    load_source(longer, tmp_path)
    return longer, folder_of(longer, tmp_path)/'scores.csv'


def untouched_again(run, out):
    "Lines of a process that reads or measures the untouched encoder"
    forget()
    untouched(run, out, log := Log())
    return log.lines


@pytest.mark.parametrize('damage', ['cut', 'gone'])
def test_the_untouched_encoders_answers_are_sealed(measured, tmp_path, damage):
    run, file = measured
    data = file.read_bytes()
    if damage == 'gone': file.unlink()
    else: file.write_bytes(data[:-3])
    lines = untouched_again(run, tmp_path)
    assert file.read_bytes() == data
    assert 'scores.csv' in lines[-1]
    assert 'measured again' in lines[-1]


def test_a_study_that_measures_more_shares_the_answers(measured, tmp_path):
    "It has scores of its own; answers that are there stay, as with other threads their last digits may differ"
    run, file = measured
    rounded = file.read_bytes().replace(b'0.', b'.0')
    file.write_bytes(rounded)
    reference = source_files_module.reference_file(run, tmp_path)
    store.write_json(reference, store.read_json(reference) | dict(files={'scores.csv': store.digest(file)}))
    more = replace(run, with_barrier=True)
    assert untouched_again(more, tmp_path) == []
    assert file.read_bytes() == rounded
    assert untouched_again(run, tmp_path) == []
    assert untouched_again(more, tmp_path) == []


# ---- memory

@pytest.mark.parametrize('cuda', [False, True])
def test_studies_keep_memory_where_there_is_no_gpu(clips, tmp_path, monkeypatch, cuda):
    called = []
    monkeypatch.setattr(source_module, 'keep_freed_memory', lambda: called.append(1))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    load_source(small_run(clips, source=''), tmp_path)
    assert len(called) == (0 if cuda else 1)
