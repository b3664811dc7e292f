"""Does each strategy work on each kind of encoder? A table of encoder by strategy.

    python experiments/encoders.py --out experiments/results/encoders.md      # needs pip install -e '.[hf,encoders]'

Encoders are those of `create_model` by name: small random video transformers in folders as transformers writes them,
small nets of torchvision, timm and pytorchvideo, and some that sdfast builds. A cell is `works` if fine-tuning with the
strategy ends with finite weights that differ from those of plain fine-tuning, `as plain` if they are equal (a strategy
for batch norm, on a net without), or `refused` with the reason below the table."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastcore.script import call_parse
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import Retention, RetentionCurve
from sdfast.models.encoders import create_model
from sdfast.report.table import Column, Table
from sdfast.runtime import store
from sdfast.strategies import STRATEGIES, Importance, channel_attention, empirical_fisher, mas_importance

FRAMES, SIZE, CLASSES, OLD_CLASSES = 4, 32, 3, 5
STRENGTH = dict(lp_ft=1., stoch_norm=.5, pskd=.5, r3f=1e5)  # for others .3
BLOCK = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
VIT = BLOCK | dict(image_size=SIZE, intermediate_size=32, num_frames=FRAMES, num_labels=OLD_CLASSES)
VIDEOMAE = VIT | dict(patch_size=16, tubelet_size=2, decoder_hidden_size=8, decoder_num_hidden_layers=1,
                      decoder_num_attention_heads=2, decoder_intermediate_size=16)
VJEPA2 = BLOCK | dict(crop_size=SIZE, patch_size=16, frames_per_clip=FRAMES, tubelet_size=2, mlp_ratio=2.,
                      pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_mlp_ratio=2.,
                      num_pooler_layers=1, num_labels=OLD_CLASSES)
# class in transformers -> class of its configuration, and a small configuration
TRANSFORMERS = dict(
    VideoMAEModel=('VideoMAEConfig', VIDEOMAE),
    VideoMAEForPreTraining=('VideoMAEConfig', VIDEOMAE),
    VideoMAEForVideoClassification=('VideoMAEConfig', VIDEOMAE),
    VivitModel=('VivitConfig', VIT | dict(tubelet_size=[2, 16, 16])),
    VivitForVideoClassification=('VivitConfig', VIT | dict(tubelet_size=[2, 16, 16])),
    TimesformerModel=('TimesformerConfig', VIT | dict(patch_size=16)),
    TimesformerForVideoClassification=('TimesformerConfig', VIT | dict(patch_size=16)),
    VJEPA2Model=('VJEPA2Config', VJEPA2),
    VJEPA2ForVideoClassification=('VJEPA2Config', VJEPA2))
# name -> options of other nets
OTHERS = {'torchvision:mobilenet_v3_small': {}, 'timm:test_vit': dict(img_size=SIZE),
          'timm:test_resnet': {}, 'tiny': dict(width=2),
          'slowfast_r50': dict(model_depth=18, stem_dim_outs=(16, 2)),
          'x3d_xs': dict(width_factor=1., depth_factor=1.),
          'ir_csn_152': dict(depths=(1, 1, 1, 1)), 'ip_csn_152': dict(depths=(1, 1, 1, 1)),
          'lrcn:test_resnet': dict(hidden=16), 'two_stream:test_resnet': dict(stack=3)}
ENCODERS = (*TRANSFORMERS, *OTHERS)


def save_checkpoint(
    name:str, # One of `TRANSFORMERS`
    folder:str|Path, # Created
)->Path: # The folder
    "Write a random model of transformers as its `save_pretrained` does"
    import transformers
    transformers.utils.logging.disable_progress_bar()
    config, sizes = TRANSFORMERS[name]
    torch.manual_seed(0)
    net = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    for p in net.parameters():  # biases and tokens that start at 0 would be equal in all checkpoints
        with torch.no_grad(): p += .02*torch.randn_like(p)
    net.save_pretrained(folder)
    return Path(folder)


def model_name(encoder, root):
    "Name and options for `create_model`; a checkpoint is written if need be"
    if encoder in OTHERS: return encoder, OTHERS[encoder]
    folder = Path(root)/encoder
    if not folder.is_dir(): save_checkpoint(encoder, folder)
    return f'hf:{folder}', {}


def clips(n_classes, seed, n=8):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, FRAMES, 3, SIZE, SIZE, generator=g)
    return list(zip(x + y[:, None, None, None, None], y))


def loaders():
    sets = clips(CLASSES, 0), clips(CLASSES, 1)
    return DataLoaders(*(DataLoader(s, bs=4) for s in sets), device='cpu')


def source_loader(seed=2): return torch.utils.data.DataLoader(clips(OLD_CLASSES, seed, 10), batch_size=5)


class Source:
    "What strategies need of the source model; computed when they ask"
    def __init__(self, encoder):
        torch.manual_seed(7)
        self.head, self.batches = nn.Linear(encoder.num_features, OLD_CLASSES), list(source_loader())
        self.model = nn.Sequential(encoder, self.head)

    @property
    def fisher(self): return empirical_fisher(self.model, self.batches)
    @property
    def mas(self): return mas_importance(self.model, self.batches)
    @property
    def attention(self): return channel_attention(self.model, self.batches)
    @property
    def si(self):
        weights = {n:p.detach().clone() for n, p in self.model[0].named_parameters()}
        return Importance({n:torch.full_like(p, .5) for n, p in weights.items()}, weights, 1)


def make_learner(name, options, cbs=()):
    torch.manual_seed(0)
    model = create_model(name, CLASSES, **options)
    more = cbs(model) if callable(cbs) else list(cbs)
    learn = Learner(loaders(), model, loss_func=nn.CrossEntropyLoss(), opt_func=SGD, lr=.05, cbs=more)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn


def trained(name, options, strategy):
    "The weights after two epochs with a strategy"
    def callbacks(model):
        with torch.random.fork_rng():
            return STRATEGIES[strategy].callbacks(STRENGTH.get(strategy, .3), Source(model[0]))
    learn = make_learner(name, options, callbacks)
    learn.fit(2)
    return [p.detach().clone() for p in learn.model.parameters()]


def outcome(name, options, strategy, plain):
    "A cell of the table, and the reason if the strategy is refused"
    try: weights = trained(name, options, strategy)
    except ValueError as e:  # `InputError` is one
        text = str(e).split('\n\t')[-1]  # without the line that fastai adds
        assert '\n' not in text
        return 'refused', text
    assert len(weights) == len(plain) or strategy == 'lora'
    assert all(w.isfinite().all() for w in weights)
    if strategy == 'finetune': return 'works', ''
    equal = len(weights) == len(plain) and all(map(torch.equal, weights, plain))
    return 'as plain' if equal else 'works', ''


def measured(name, options):
    "Whether `Retention` and `RetentionCurve` measure what an encoder keeps"
    torch.manual_seed(0)
    model = create_model(name, OLD_CLASSES, **options)
    retention = Retention(model, source_loader(), source_loader(3))
    layers = len(retention.layers)
    untouched = retention.change(model[0])
    curve = RetentionCurve(retention, clips=4)
    learn = make_learner(name, options, [curve])
    learn.fit(1)
    assert layers > 2 and untouched['drift'] == 0 and len(curve.history) == 1
    return 'works', ''


def make_row(encoder, root, strategies):
    "Cells of one encoder: column -> (mark, reason)"
    name, options = model_name(encoder, root)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plain = trained(name, options, 'finetune')
        row = {s:outcome(name, options, s, plain) for s in strategies}
        return row | dict(retention=measured(name, options))


def make_table(rows):
    "The table, and the reasons of refusals as lines"
    columns = list(next(iter(rows.values())))
    cells = [[c, *(rows[e][c][0] for e in rows)] for c in columns]
    reasons = sorted({f'- {c} on {e}: {rows[e][c][1]}' for e in rows for c in columns if rows[e][c][1]})
    heads = ['strategy', *rows]
    note = '`retention` is `Retention` and `RetentionCurve`.'
    table = Table([Column(h, numeric=False) for h in heads], cells, note, title='strategy by encoder')
    return table, reasons


@call_parse
def main(
    out:str='', # File to write, as Markdown; by default it is printed
):
    "Try every strategy, `Retention` and `RetentionCurve` on every kind of encoder"
    with tempfile.TemporaryDirectory() as root:
        try: rows = {e:make_row(e, root, list(STRATEGIES)) for e in ENCODERS}
        except InputError as e: sys.exit(str(e))
    table, reasons = make_table(rows)
    text = '\n'.join([table.to_markdown(), '', *reasons]).rstrip('\n') + '\n'
    if out: store.write(out, text)
    else: print(text)
