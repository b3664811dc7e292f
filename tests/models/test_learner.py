"`video_learner`: the model, its normalisation, what is frozen, and what a learner of videos can do."
import shutil
import warnings

import pytest
import torch
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from torch import nn

from sdfast.data.block import MultiClip
from sdfast.data.dataloaders import VideoDataLoaders, get_video_files
from sdfast.data.indexing import index_video
from sdfast.data.task import Task
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError
from sdfast.models import library_nets
from sdfast.models.encoders import create_encoder, create_model, model_stats
from sdfast.models.learner import FrozenEncoder, video_learner
from sdfast.strategies.distill import SelfDistill

GROUP = r'(p\d)_'


@pytest.fixture
def dls(clips): return VideoDataLoaders.from_folder(clips, group=GROUP, frames=4, size=24, bs=4)


def quiet(learn):
    learn.create_mbar, learn.logger = False, lambda *args: None
    return learn


def weights(module): return {k:v.clone() for k, v in module.state_dict().items()}
def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


# ---- freezing

def test_freeze_and_fine_tune_do_what_they_say(dls):
    learn = quiet(video_learner(dls, create_encoder('tiny', width=8), metrics=accuracy))
    encoder, head = weights(learn.model[0]), weights(learn.model[1])
    learn.fit(1)
    assert same(encoder, weights(learn.model[0]))  # weights, and statistics of batch norm
    assert not same(head, weights(learn.model[1]))
    learn.unfreeze()
    learn.fit(1)
    assert not same(encoder, weights(learn.model[0]))
    trained = weights(learn.model[0])
    assert all(not torch.equal(v, trained[k]) for k, v in encoder.items() if 'running' in k)
    learn.freeze()
    encoder = weights(learn.model[0])
    learn.fit(1)
    assert same(encoder, weights(learn.model[0]))
    seen = []
    class Look(FrozenEncoder):
        order = 90
        def before_train(self): seen.append([p.requires_grad for p in self.learn.model.parameters()])
    learn = quiet(video_learner(dls, create_encoder('tiny', width=8), cbs=Look))
    learn.fine_tune(1, freeze_epochs=2)
    n = len(list(learn.model[0].parameters()))
    assert [any(flags[:n]) for flags in seen] == [False, False, True]
    assert all(flags[n] for flags in seen)


def test_two_groups_of_weights(dls):
    learn = video_learner(dls, 'tiny', pretrained=False)
    learn.create_opt()
    assert [len(group) for group in learn.opt.param_lists] == [len(list(m.parameters())) for m in learn.model]
    assert all(p.requires_grad for p in learn.model.parameters())  # nothing is pre-trained, so nothing is frozen

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = create_encoder('tiny')
            self.head = nn.Linear(self.encoder.num_features, 2)
        def forward(self, x): return self.head(self.encoder(x))
    learn = quiet(video_learner(dls, Named()))
    before, head = weights(learn.model.encoder), weights(learn.model.head)
    learn.fit(1)
    assert same(before, weights(learn.model.encoder))
    assert not same(head, weights(learn.model.head))


def test_batch_norm_is_trained_if_asked(dls):
    learn = quiet(video_learner(dls, create_encoder('tiny', width=8), train_bn=True))
    before = weights(learn.model[0])
    learn.fit(1)
    changed = [k for k, v in weights(learn.model[0]).items() if not torch.equal(v, before[k])]
    assert any('running_mean' in k for k in changed)


# ---- models

@pytest.fixture
def published(monkeypatch):
    "torchvision's r2plus1d_18 with random weights instead of a download"
    import torchvision
    plain = torchvision.models.get_model
    asked = []
    def get_model(name, weights=None, **kwargs):
        asked.append(getattr(weights, 'name', weights))
        return plain(name, weights=None, **kwargs)
    monkeypatch.setattr(library_nets.torchvision.models, 'get_model', get_model)
    return asked


def test_a_model_of_torchvision_by_name(dls, published):
    learn = video_learner(dls, 'r2plus1d_18', metrics=accuracy, cbs=SelfDistill(10.))
    assert published == ['KINETICS400_V1']  # the default
    assert not any(p.requires_grad for p in learn.model[0].parameters())
    mean, std = (torch.tensor(v) for v in model_stats('r2plus1d_18'))
    for dl in dls.loaders:
        norm = dl.after_batch.fs[-1]
        torch.testing.assert_close(norm.mean.flatten().cpu(), mean)
        torch.testing.assert_close(norm.std.flatten().cpu(), std)
    assert [type(cb) for cb in learn.cbs if isinstance(cb, (MultiClip, SelfDistill))] == [SelfDistill, MultiClip]
    video_learner(dls, 'r2plus1d_18', pretrained=False)  # the same loaders: not normalised again
    assert published == ['KINETICS400_V1', None]
    assert len(dls.train.after_batch.fs) == 2


def test_normalisation_is_that_of_the_loaders_or_of_the_model(clips, published):
    task = Task.from_folder(clips, group=GROUP).hold_out(.3)
    of_imagenet = task.dls(frames=4, size=24, bs=4)
    with pytest.warns(UserWarning, match=r"expects: pass stats=model_stats\('r2plus1d_18'\)"):
        video_learner(of_imagenet, 'r2plus1d_18')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        video_learner(task.dls(frames=4, size=24, bs=4, stats=model_stats('r2plus1d_18')), 'r2plus1d_18')
        video_learner(of_imagenet, 'tiny', pretrained=False)
    dls = VideoDataLoaders.from_folder(clips, group=GROUP, frames=4, size=24, bs=4)
    video_learner(dls, 'tiny', pretrained=False, normalize=False)
    assert dls.one_batch()[0].min() >= 0


@pytest.mark.parametrize('arch,kwargs,match', [
    ('tiny', {}, 'tiny has no weights to download: pass init=FILE, or pretrained=False'),
    ('nothing', dict(pretrained=False), "unknown model 'nothing'"),
    ('vit_tiny_patch16_224', dict(pretrained=False), r'vit_tiny_patch16_224 does not take clips of 4 frames of 24x24 '
     r'pixels \(.*expected 224x224.*: change frames or size')])
def test_models_that_do_not_fit(dls, arch, kwargs, match):
    with pytest.raises(InputError, match=match) as e: video_learner(dls, arch, **kwargs)
    assert '\n' not in str(e.value)


def test_modules(dls):
    with pytest.raises(InputError, match='the head of Sequential has 5 outputs, not 2'):
        video_learner(dls, create_model('tiny', 5))
    with pytest.raises(InputError, match='returns no features'): video_learner(dls, nn.Sequential(nn.Flatten(2)))
    assert video_learner(dls, create_model('tiny', 5), n_out=5).model[1].out_features == 5
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
        def forward(self, x): return x.mean((1, 3, 4))*self.w
    assert video_learner(dls, Mean()).model[1].in_features == 3
    with pytest.raises(InputError, match='arch is a Mean, not a name, so width is not used'):
        video_learner(dls, Mean(), width=3)


def test_weights_from_a_file(dls, tmp_path):
    from sdfast.models.weights import save_weights
    encoder = create_encoder('tiny')
    save_weights(encoder, tmp_path/'e.safetensors')
    learn = video_learner(dls, 'tiny', init=tmp_path/'e.safetensors')
    assert same(weights(encoder), weights(learn.model[0]))
    assert not any(p.requires_grad for p in learn.model[0].parameters())


def test_making_a_learner_changes_no_statistics(dls):
    model = create_model('tiny', 2)
    before = weights(model)
    video_learner(dls, model)
    assert same(before, weights(model))
    assert model.training


# ---- predictions

@pytest.fixture
def learner(clips):
    def learner(**kwargs):
        dls = VideoDataLoaders.from_folder(clips, group=GROUP, **dict(frames=4, size=24, bs=4) | kwargs)
        set_seed(0)
        return quiet(video_learner(dls, create_model('tiny', 2)))
    return learner


def test_predict_what_there_is(learner, clips, tmp_path):
    learn = learner()
    file = get_video_files(clips)[0]
    name, number, probs = learn.predict(file)
    assert name == learn.dls.vocab[int(number)]
    for other in (str(file), VideoFile(file)): assert torch.equal(learn.predict(other)[2], probs)
    clip = learn.dls.valid.after_item.fs[0](VideoFile(file), split_idx=1).as_subclass(torch.Tensor)
    for frames in (clip, clip.numpy(), clip.float()/255, (clip.double()/255)):
        assert torch.equal(learn.predict(frames)[2], probs)
    whole = VideoFile(file).read(range(12))
    assert learn.predict(whole)[2].shape == (2,)  # a whole video: the middle clip of it, scaled
    broken = tmp_path/'broken.mp4'
    broken.write_bytes(b'no video')
    for bad in (broken, tmp_path/'nowhere.mp4'):
        with pytest.raises(VideoError, match=bad.name) as e: learn.predict(bad)
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match=r'must be a tensor \(T, 3, H, W\)') as e: learn.predict(torch.rand(3, 24, 24))
    assert '\n' not in str(e.value)


def test_a_tensor_of_a_whole_video_is_cut_as_the_file_is(learner, clips):
    "Without scaling, frames in memory give what the file gives, in all clips"
    learn = learner(size=48, k=3)  # the height of the videos
    file = get_video_files(clips)[0]
    a, b = learn.predict(file)[2], learn.predict(VideoFile(file).read(range(12)))[2]
    assert torch.equal(a, b)


def test_predictions_of_many_files(learner, clips, tmp_path):
    learn = learner()
    files = list(get_video_files(clips)[:3])
    whole, _ = learn.get_preds(dl=learn.dls.test_dl(files))
    torch.testing.assert_close(whole, torch.stack([learn.predict(f)[2] for f in files]), rtol=1e-5, atol=1e-6)
    broken = tmp_path/'broken.mp4'
    broken.write_bytes(b'no video')
    index_video.cache_clear()
    with pytest.warns(UserWarning, match='broken.mp4.*its row is NaN'):
        found, _ = learn.get_preds(dl=learn.dls.test_dl([files[0], broken, files[1]]))
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], whole[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kwargs', [dict(), dict(size=None, item_tfms=Resize(24), batch_tfms=aug_transforms(size=16))],
                         ids=['plain', 'transforms'])
def test_export_and_load(learner, clips, tmp_path, kwargs):
    learn = learner(**kwargs)
    learn.fit(1)
    file = get_video_files(clips)[0]
    probs = learn.predict(file)[2]
    learn.path = tmp_path
    learn.export()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'export.pkl')
    assert type(loaded.dls) is VideoDataLoaders
    assert torch.equal(quiet(loaded).predict(file)[2], probs)
    assert torch.equal(loaded.predict(shutil.copy(file, tmp_path/'copy.mp4'))[2], probs)


def test_show_results(learner):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    learn = learner(batch_tfms=aug_transforms())
    learn.show_results(max_n=2)
    assert len([a for a in plt.gcf().axes if a.images]) == 2
    plt.close('all')


def test_several_clips_of_each_video(learner):
    learn = learner(k=3)
    assert learn.get_preds()[0].shape == (len(learn.dls.valid_ds), 2)
    assert sum(isinstance(cb, MultiClip) for cb in learn.cbs) == 1
