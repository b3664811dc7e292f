"Audits of checkpoints on class folders and videos without labels: files, folders, names of libraries, mistakes."
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdfast.data.datasets import create_task
from sdfast.errors import InputError
from sdfast.metrics.extra import EXTRA
from sdfast.metrics.features import probe_head
from sdfast.models.encoders import create_model
from sdfast.models.features import extract
from sdfast.models.model_folder import save_pretrained
from sdfast.models.weights import save_weights
from sdfast.study import checkpoints
from sdfast.study.audit import AuditSettings, audit_checkpoints
from sdfast.study.checkpoints import load_checkpoint

SMALL = AuditSettings(model='tiny', frames=4, size=32, resamples=200)
pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.usefixtures('fresh')]


def moved(net, by=.05):
    torch.manual_seed(1)
    net = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters(): p.add_(by*torch.randn_like(p))
    return net


@pytest.fixture
def files(tmp_path):
    "Weights of an encoder before and after"
    torch.manual_seed(0)
    net = create_model('tiny', 2)[0]
    save_weights(net, tmp_path/'before.safetensors')
    save_weights(moved(net), tmp_path/'after.safetensors')
    return net, str(tmp_path/'before.safetensors'), str(tmp_path/'after.safetensors')


@pytest.fixture
def task(clips): return f'folder:{clips},test_frac=.5,group=(p\\d)_'


@pytest.mark.parametrize('extra', EXTRA)
def test_extra_measures(files, task, extra):
    _, before, after = files
    settings = replace(SMALL, extra=extra, barrier=False)
    task = task.replace('.5', '.25')  # three persons to train on, of whom one is held out to choose settings on
    _, results = audit_checkpoints(before, [after, before], [task], settings)
    tuned, untouched = (r.found for r in results)
    assert f'{extra}.before' in tuned.clips and 0 <= tuned.measures[extra].after.mean <= 1
    assert tuned.measures[extra].before.mean == tuned.clips[f'{extra}.before'].mean()
    assert untouched.measures[extra].change.mean == 0
    assert results[0].about['train_clips'] == (8 if extra in EXTRA[:2] else 12)
    with pytest.raises(InputError, match='extra measures are'):
        audit_checkpoints(before, [after], [task], replace(SMALL, extra='probe'))


def test_files_on_class_folders(files, task):
    _, before, after = files
    said = []
    base, results = audit_checkpoints(before, [after, before], [task], SMALL, said.append)
    tuned, untouched = results
    assert (base.name, tuned.after.name, tuned.task) == (before, after, task)
    assert tuned.about == dict(clips=8, train_clips=8, n_classes=2, head='probe', chance=.5, grouped=True)
    assert tuned.found.groups == 2  # two of four persons
    assert set(tuned.found.classes) == {'down', 'right'} == set(tuned.found.clips.label)
    assert all(f'/{label}/' in path for path, label in tuned.found.clips[['path', 'label']].values)
    assert tuned.found.measures['drift'].after.mean > 0
    assert {m.change.mean for m in untouched.found.measures.values()} == {0.}
    assert any('CKA is left out' in note for note in tuned.notes)  # of 8 clips
    assert said[0] == f'loading {before}' and said[-1] == f'{task}: {before}'


def test_the_head_of_the_checkpoint_is_the_old_head(files, task, tmp_path):
    "If it is not above chance, it is of other classes, and a probe takes its place"
    encoder, _, after = files
    _, results = audit_checkpoints(files[1], [after], [task], SMALL)
    made = create_task(task, 'source')
    dls = made.dls(4, 1, 32, 32, train_only=True)
    head = probe_head(*extract(encoder, made.dl(dls, 'test')), 2)  # right on each test clip
    net = nn.Sequential(encoder, head)
    torch.save(net.state_dict(), tmp_path/'with_head.pth')
    _, [found] = audit_checkpoints(str(tmp_path/'with_head.pth'), [after], [task], SMALL)
    assert found.about['head'] == 'checkpoint'
    assert found.found.measures['source_acc'].before.mean == 1
    with torch.no_grad(): head.weight.mul_(-1), head.bias.mul_(-1)
    torch.save(net.state_dict(), tmp_path/'wrong_head.pth')
    _, [found] = audit_checkpoints(str(tmp_path/'wrong_head.pth'), [after], [task], SMALL)
    assert found.about['head'] == 'probe'
    assert any('is at chance' in note and 'not of these classes' in note for note in found.notes)
    assert found.found.measures == results[0].found.measures


def test_videos_without_labels(files, clips, tmp_path):
    net, before, after = files
    _, [found] = audit_checkpoints(before, [after], [f'videos:{clips}'], SMALL)
    assert set(found.found.measures) == {'cka_unbiased', 'procrustes', 'drift', 'weight_distance', 'neighbours'}
    assert (found.about['clips'], found.about['head'], found.about['n_classes']) == (16, None, 0)
    assert any('pretext loss is not measured' in note for note in found.notes)
    torch.save(nn.Sequential(net, nn.Linear(net.num_features, 7)).state_dict(), tmp_path/'seven.pth')
    _, [found] = audit_checkpoints(str(tmp_path/'seven.pth'), [after], [f'videos:{clips},group=(p\\d)_'], SMALL)
    assert 'kl' in found.found.measures  # by a head of any classes
    assert found.found.groups == 4


def test_a_broken_video_without_label_is_left_out(files, clips, tmp_path):
    folder = tmp_path/'videos'
    folder.mkdir()
    for i, file in enumerate(sorted(clips.rglob('*.mp4'))[:3]): (folder/f'{i}.mp4').write_bytes(file.read_bytes())
    (folder/'broken.mp4').write_bytes(b'no video')
    _, [found] = audit_checkpoints(files[1], [files[2]], [f'videos:{folder}'], SMALL)
    assert found.about['clips'] == 3
    assert any('1 videos cannot be decoded' in note for note in found.notes)


def test_folders_say_which_net_they_are_of(files, tmp_path, task):
    net, _, after = files
    torch.manual_seed(0)
    before = create_model('tiny', 2)
    before[0].load_state_dict(net.state_dict())
    save_pretrained(before, tmp_path/'ours')
    settings = AuditSettings(frames=4, size=32, resamples=200)
    base, [found] = audit_checkpoints(str(tmp_path/'ours'), [after], [task], settings)
    assert base.model == f'sdfast:{tmp_path/"ours"}'
    assert found.found.measures['weight_distance'].after.mean > 0
    with pytest.raises(InputError, match='does not say which net its weights are of: add --model'):
        audit_checkpoints(after, [str(tmp_path/'ours')], [task], settings)


def test_a_folder_of_transformers(clips, tmp_path):
    transformers = pytest.importorskip('transformers')
    sizes = dict(image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=2, intermediate_size=32)
    config = transformers.VideoMAEConfig(num_frames=4, num_attention_heads=2, num_labels=3, **sizes)
    torch.manual_seed(0)
    net = transformers.VideoMAEForVideoClassification(config)
    net.save_pretrained(tmp_path/'base')
    moved(net).save_pretrained(tmp_path/'tuned')
    names = [f'hf:{tmp_path/"base"}', str(tmp_path/'tuned')]  # by its name, or the folder alone
    _, [found] = audit_checkpoints(names[0], [names[1]], [f'videos:{clips}'], AuditSettings(resamples=200))
    assert found.found.measures['drift'].after.mean > 0
    assert 'kl' in found.found.measures  # by its classifier
    assert len(found.found.layers) >= 2
    with pytest.raises(InputError, match='--frames 3 --size 32: the model cannot take clips of 3 frames, expected 4'):
        audit_checkpoints(*names[:1], names[1:], [f'videos:{clips}'], AuditSettings(frames=3))
    _, [same] = audit_checkpoints(names[0], [str(tmp_path/'base')], [f'videos:{clips}'], AuditSettings(resamples=200))
    assert {m.change.mean for m in same.found.measures.values()} == {0.}


@pytest.mark.parametrize('name', ['timm:resnet10t', 'torchvision:shufflenet_v2_x0_5', 'timm:test_resnet'])
def test_nets_of_libraries(name, clips, tmp_path):
    "An image net on each frame, from a file of its weights"
    try: net = create_model(name, 2, 'random')[0]
    except InputError: pytest.skip(f'{name} is not in this version')
    torch.save(net.state_dict(), tmp_path/'a.pth')
    torch.save(moved(net, .001).state_dict(), tmp_path/'b.pth')
    settings = AuditSettings(model=name, frames=2, size=64, resamples=200, bs=8)
    _, [found] = audit_checkpoints(str(tmp_path/'a.pth'), [str(tmp_path/'b.pth')], [f'videos:{clips}'], settings)
    assert 0 < found.found.measures['weight_distance'].after.mean < 1


WRONG = {
    'nothing': (dict(after=['nothing']), 'nothing is neither a file or folder that exists nor a model'),
    'twice': (dict(after=['a', 'a']), 'checkpoint a is given twice'),
    'no task': (dict(tasks=[]), 'at least one checkpoint after, and one task'),
    'other net': (dict(after=['OTHER']), 'not of this encoder|another net'),
    'no folder': (dict(tasks=['videos:/nowhere']), 'folder /nowhere does not exist'),
    'no classes': (dict(tasks=['folder:FLAT']), 'no videos in class folders.*; for videos without labels write'),
    'unknown task': (dict(tasks=['ucf:x']), "unknown task 'ucf:x'"),
    'bad option': (dict(model_args='width'), '--model-args must be name=value'),
    'no model': (dict(model=''), 'add --model'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_it_refuses(case, files, task, tmp_path):
    changed, message = WRONG[case]
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path/'other.pth')
    given = dict(before=files[1], after=[files[2]], tasks=[task])
    given |= {k:v for k, v in changed.items() if k in given}
    given['after'] = [str(tmp_path/'other.pth') if a == 'OTHER' else a for a in given['after']]
    (tmp_path/'flat').mkdir()
    (tmp_path/'flat'/'a.mp4').write_bytes(b'')
    given['tasks'] = [t.replace('FLAT', str(tmp_path/'flat')) for t in given['tasks']]
    settings = dict(model='tiny', frames=4, size=32) | {k:v for k, v in changed.items() if k not in given}
    with pytest.raises(InputError, match=message) as e: audit_checkpoints(**given, settings=AuditSettings(**settings))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('which', [0, 1])
def test_features_that_are_not_finite(which, files, task, tmp_path):
    net = copy.deepcopy(files[0])
    with torch.no_grad():
        for p in net.parameters(): p.mul_(1e30)
    save_weights(net, tmp_path/'large.safetensors')
    names = [files[1], files[2]]
    names[which] = str(tmp_path/'large.safetensors')
    with pytest.raises(InputError, match='large.safetensors on folder:.*the features are not finite'):
        audit_checkpoints(names[0], names[1:], [task], SMALL)


def test_names_of_libraries_load_published_weights(monkeypatch):
    "Only names that bring their weights themselves go without `pretrained`"
    seen = []
    def fake(name, n_classes, init, **kwargs):
        seen.append((name, str(init)))
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    monkeypatch.setattr(checkpoints, 'create_model', fake)
    for text in ('timm:resnet18', 'r2plus1d_18'): load_checkpoint(text)
    load_checkpoint('pretrained', 'r2plus1d_18')
    assert seen == [('timm:resnet18', 'pretrained'), ('r2plus1d_18', 'pretrained'), ('r2plus1d_18', 'pretrained')]
    for name in ('tiny', 'x3d_m', 'lrcn:test_resnet'):
        with pytest.raises(InputError, match=f'{name} has no weights to download'): load_checkpoint(name)
