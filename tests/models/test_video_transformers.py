"Video transformers of checkpoints as encoders: their features are what their own classifiers see."
import subprocess
import sys
import warnings

import pytest
import torch
from helpers import same, state
from scripts import load_script
from torch import nn

from sdfast.errors import InputError
from sdfast.models.blocks import block_names
from sdfast.models.encoders import clip_spec, create_encoder, create_model, model_id, model_stats
from sdfast.models.weights import load_encoder
from sdfast.strategies import layer_groups

transformers = pytest.importorskip('transformers')
SCRIPT = load_script('encoders')
NAMES = list(SCRIPT.TRANSFORMERS)
CLASSIFIERS = [n for n in NAMES if n.endswith('Classification')]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('checkpoints')
    return {n:SCRIPT.save_checkpoint(n, root/n) for n in NAMES}


def own(name, folder): return getattr(transformers, name).from_pretrained(folder).eval()
def clip(frames=4, size=32): return torch.randn(2, frames, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_features_are_those_of_the_model_itself(name, folders):
    model, encoder, x = own(name, folders[name]), create_encoder(f'hf:{folders[name]}').eval(), clip()
    f = encoder(x)
    assert f.shape == (2, encoder.num_features) == (2, 16)
    if name in CLASSIFIERS: return torch.testing.assert_close(model.classifier(f), model(x).logits)
    tokens = getattr(model, 'videomae', model)(x).last_hidden_state
    expected = tokens[:, 0] if name in ('VivitModel', 'TimesformerModel') else tokens.mean(1)
    torch.testing.assert_close(f, expected)
    assert not any('decoder' in n or 'predictor' in n for n, _ in encoder.named_parameters())


@pytest.mark.parametrize('name', NAMES)
def test_blocks_and_layer_groups(name, folders):
    model = create_model(f'hf:{folders[name]}', 3)
    blocks = [n for n in block_names(model[0]) if n.endswith(('.0', '.1'))]
    assert len(blocks) == 2
    assert all('layer' in n for n in blocks)
    names = {id(p):n for n, p in model.named_parameters()}
    groups = [[names[id(p)] for p in g] for g in layer_groups(model)]
    assert all('embeddings' in n for n in groups[0])
    assert [len(groups), groups[-1]] == [4, ['1.weight', '1.bias']]
    assert all(n.startswith(f'0.{blocks[0]}.') for n in groups[1])
    rest = [n for n in groups[2] if not n.startswith(f'0.{blocks[1]}.')]
    assert all('layernorm' in n or 'pooler' in n for n in rest)


@pytest.mark.parametrize('name', NAMES)
def test_other_clips_are_refused_or_positions_follow(name, folders):
    encoder = create_encoder(f'hf:{folders[name]}').eval()
    if name.startswith(('VideoMAE', 'Vivit')):
        with pytest.raises(InputError, match='clips of 8 frames, expected 4: pass frames=4') as e: encoder(clip(8))
        assert '\n' not in str(e.value)
        with pytest.raises(InputError, match='48x48 pixels, expected 32x32: pass size=32'): encoder(clip(4, 48))
        return
    for frames, size in ((8, 32), (4, 48), (4, 32)): assert encoder(clip(frames, size)).isfinite().all()
    with pytest.raises(InputError, match='expected squares of a multiple of 16'): encoder(clip(4, 40))
    if name.startswith('VJEPA2'):
        with pytest.raises(InputError, match='a multiple of 2'): encoder(clip(3))


@torch.no_grad()
def test_positions_follow_as_if_the_model_were_configured_for_these_clips(folders):
    for name, given in (('VJEPA2Model', dict(crop_size=48)), ('TimesformerModel', dict(num_frames=4))):
        x = clip(4, 48 if 'crop_size' in given else 32)
        a, b = (create_encoder(f'hf:{folders[name]}', **kw).eval() for kw in (given, {}))
        b(clip(4, 32)), b(clip(8, 32))  # other clips before leave nothing behind
        torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


@pytest.mark.parametrize('name', NAMES)
def test_load_encoder_reads_the_folder_too(name, folders, tmp_path):
    encoder = create_encoder(f'hf:{folders[name]}')
    fresh = create_encoder(f'hf:{folders[name]}', pretrained=False)
    assert not same(state(fresh), state(encoder))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        load_encoder(fresh, folders[name])
    assert same(state(fresh), state(encoder))
    texts = [str(w.message) for w in said if 'left out' in str(w.message)]
    assert any('decoder, encoder_to_decoder, mask_token' in t for t in texts) == (name == 'VideoMAEForPreTraining')
    # inside a Lightning module
    names = {f'model.net.{k}':v for k, v in own(name, folders[name]).state_dict().items()}
    torch.save(dict(state_dict=names), tmp_path/'w.ckpt')
    fresh = create_encoder(f'hf:{folders[name]}', pretrained=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        load_encoder(fresh, tmp_path/'w.ckpt')
    assert same(state(fresh), state(encoder))


def test_the_normalisation_is_what_the_processor_does(folders, tmp_path):
    from sdfast.models.hub import read_stats
    assert model_stats(f'hf:{folders["VivitModel"]}') == ((.5,)*3, (.5,)*3)
    assert model_stats(f'hf:{folders["VideoMAEModel"]}')[0] == (.485, .456, .406)
    frame = torch.full((3, 40, 40), 51, dtype=torch.uint8)
    processors = (transformers.VivitImageProcessor(), transformers.VideoMAEImageProcessor(),
                  transformers.VivitImageProcessor(do_normalize=False), transformers.VideoMAEImageProcessor(
                      image_mean=[.1, .2, .3], image_std=[.4, .5, .6]))
    for processor in processors:
        processor.save_pretrained(tmp_path)
        stats = read_stats(tmp_path)
        seen = torch.as_tensor(processor([frame.permute(1, 2, 0).numpy()], return_tensors='pt')['pixel_values'])
        for c in range(3):
            ours = (51/255 - stats['mean'][c])/stats['std'][c]
            assert seen[0, 0, c].mean().item() == pytest.approx(ours, abs=1e-5), processor


def test_what_is_missing_or_broken_is_one_line(folders, tmp_path):
    from safetensors.torch import load_file, save_file
    def refused(match, name=f'hf:{tmp_path}', **kw):
        with pytest.raises(InputError, match=match) as e: create_encoder(name, **kw)
        assert '\n' not in str(e.value)
    refused('neither a folder that exists nor OWNER/NAME', 'hf:nothing')
    refused('has no config.json')
    source = folders['VideoMAEModel']
    (tmp_path/'config.json').write_text((source/'config.json').read_text())
    refused("has no weights .* pass init='random'")
    assert create_model(f'hf:{tmp_path}', 2, init='random')[0].num_features == 16
    weights = load_file(source/'model.safetensors')
    save_file({k:v for k, v in weights.items() if 'layer.1.output' not in k}, tmp_path/'model.safetensors')
    refused('lack 2 entries: encoder.layer.1.output.dense.bias')
    (tmp_path/'model.safetensors').write_text('nonsense')
    refused('cannot be loaded')
    refused('does not take colour=3: the configuration of a videomae has no colour', f'hf:{source}', colour=3)
    (tmp_path/'config.json').write_text('{"model_type": "bert"}')
    refused('is a bert, and known are videomae')


def test_half_precision_files_become_float32(folders, tmp_path):
    model = own('VideoMAEModel', folders['VideoMAEModel']).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in create_encoder(f'hf:{tmp_path}').parameters()} == {torch.float32}


def test_dropout_is_off_unless_asked_for(folders, tmp_path):
    config = own('VideoMAEModel', folders['VideoMAEModel']).config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = .5
    transformers.VideoMAEModel(config).save_pretrained(tmp_path)
    encoder, x = create_encoder(f'hf:{tmp_path}').train(), clip()
    assert torch.equal(encoder(x), encoder(x))
    dropping = create_encoder(f'hf:{tmp_path}', hidden_dropout_prob=.5).train()
    assert not torch.equal(dropping(x), dropping(x))


def test_an_id_is_of_the_content(folders, tmp_path):
    import shutil
    copied = shutil.copytree(folders['VivitModel'], tmp_path/'copy')
    other = model_id(f'hf:{folders["VJEPA2Model"]}')
    assert model_id(f'hf:{copied}') == model_id(f'hf:{folders["VivitModel"]}') != other
    with open(copied/'model.safetensors', 'r+b') as f:
        f.seek(-1, 2)
        f.write(b'\1')
    assert model_id(f'hf:{copied}') != model_id(f'hf:{folders["VivitModel"]}')


def test_what_a_clip_must_be_is_known_without_weights(folders):
    spec = clip_spec(f'hf:{folders["VJEPA2ForVideoClassification"]}')
    assert (spec.frames, spec.size, spec.pooling, spec.layout) == (4, 32, 'attentive', 'BTCHW')
    spec = clip_spec('mvit_v2_s')
    assert (spec.frames, spec.size, spec.any_frames, spec.any_size, spec.layout) == (16, 224, False, False, 'BCTHW')


def test_a_name_on_the_hub(folders, monkeypatch):
    import huggingface_hub
    asked = []
    def download(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(folders['VideoMAEModel'])
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    encoder = create_encoder('hf:somebody/videomae-tiny', revision='v2')
    assert same(state(encoder), state(create_encoder(f'hf:{folders["VideoMAEModel"]}')))
    assert asked == [('somebody/videomae-tiny', 'v2')]
    def fail(*args, **kwargs): raise OSError('no network\nat all')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    with pytest.raises(InputError, match='cannot be downloaded: no network; give a folder'): create_encoder('hf:a/b')


def test_transformers_is_imported_only_when_it_is_used():
    code = 'import sys, sdfast.all; sys.exit("transformers" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_models_of_transformers_themselves_still_take_encoder(folders):
    from sdfast.strategies import FixedTeacher
    model = own('VideoMAEForVideoClassification', folders['VideoMAEForVideoClassification'])
    class Logits(nn.Module):
        def __init__(self): super().__init__(); self.hf = model
        def forward(self, x): return self.hf(x).logits
    learn = SCRIPT.make_learner('tiny', dict(width=2), [FixedTeacher(1., encoder='hf.videomae')])
    learn.model = Logits()
    learn.create_opt()
    learn.fit(1)
