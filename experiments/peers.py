"""Do other libraries pass the checks that sdfast's strategies pass?

    python experiments/peers.py --out runs/peers.md      # needs pip install -e '.[peers]'

Calls the libraries' own functions on a tiny net and writes a row for each check: ✓ passed, ✗ failed, and what was
seen."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import warnings
from copy import deepcopy
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import torch
from fastcore.script import call_parse
from rich.console import Console
from torch import nn
from torch.nn.functional import cross_entropy

from sdfast.commands.common import make_folder, one_line_errors
from sdfast.report.table import Column, Table
from sdfast.runtime import store
from sdfast.strategies import empirical_fisher, mas_importance, soft_divergence


def make_net(): # Net, 64 images, their labels
    "A net with batch norm, and random images"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return net, torch.randn(64, 1, 6, 6), torch.randint(0, 3, (64,))


class ImageSet:
    "A data set as Avalanche has them"
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i], 0


def moved_by(net, before):
    "How far batch norm's running means moved"
    return (net[2].running_mean - before).abs().max().item()


def total(importances): return sum(i.sum() for i in importances)


def close_to_one(share): return abs(share - 1) < .01


# ---- checks: `(passed, what was seen)`

def avalanche_fisher(bs):
    from avalanche.training.plugins import EWCPlugin
    net, x, y = make_net()
    opt = torch.optim.SGD(net.parameters(), .1)
    theirs = EWCPlugin(1.).compute_importances(net, nn.CrossEntropyLoss(), opt, ImageSet(x, y), 'cpu', bs)
    ours = empirical_fisher(net, [(x, y)], encoder=lambda m: m)
    share = total(i.data for i in theirs.values())/total(ours.diag.values())
    return close_to_one(share), f'batches of {bs}: its sum is {share:.3f} of the mean of per-sample squares'


def avalanche_importance(net, x, y):
    "Importance of memory-aware synapses, by Avalanche"
    from avalanche.training.plugins import MASPlugin
    experience = SimpleNamespace(dataset=ImageSet(x, y))
    strategy = SimpleNamespace(model=net, experience=experience, train_mb_size=32, device='cpu',
                               optimizer=torch.optim.SGD(net.parameters(), .1))
    return MASPlugin()._get_importance(strategy)


def avalanche_mas_samples():
    net, x, y = make_net()
    net[2] = nn.Identity()  # without batch norm the mode makes no difference
    theirs = avalanche_importance(net, x, y)
    ours = mas_importance(net, [(x, y)], encoder=lambda m: m)
    share = total(i.data for i in theirs.values())/total(ours.diag.values())
    return close_to_one(share), f'batches of 32: its sum is {share:.3f} of the mean of per-sample sizes'


def avalanche_mas_statistics():
    net, x, y = make_net()
    before = net[2].running_mean.clone()
    avalanche_importance(net, x, y)
    moved = moved_by(net, before)
    return moved == 0, f"taking it moved batch norm's statistics by {moved:.3f} with 64 samples"


def avalanche_lwf():
    from avalanche.training.regularization import LearningWithoutForgetting
    net, x, _ = make_net()
    lwf = LearningWithoutForgetting(1., 2.)
    lwf.prev_model = deepcopy(net)
    lwf.prev_classes_by_task = {0: {0, 1, 2}}
    before = net[2].running_mean.clone()
    net.train()
    lwf._lwf_penalty(net(x), x, 1.)
    moved = moved_by(lwf.prev_model, before)
    trains = any(p.requires_grad for p in lwf.prev_model.parameters())
    seen = f'a teacher copied from a net in train mode: its statistics moved by {moved:.3f} in one batch'
    return moved == 0 and not trains, seen


def avalanche_features():
    from avalanche.training.plugins import FeatureDistillationPlugin
    net, x, _ = make_net()
    net.features = net[:4](x)
    plugin = FeatureDistillationPlugin(1., 'mse')
    plugin.prev_model = net
    plugin.before_backward(SimpleNamespace(mb_x=x, mb_task_id=None, model=net, loss=torch.zeros(())))
    return True, 'mean squared distance'


def avalanche_lfl():
    from avalanche.training.plugins import LFLPlugin
    net, x, _ = make_net()
    net.get_features = lambda x: net[:4](x)
    plugin = LFLPlugin(1.)
    plugin.prev_model = net
    net.train()
    plugin.penalty(x, net, 1.)
    return net.training, 'it does' if net.training else 'the penalty leaves the model in evaluation mode'


def timm_divergence():
    import timm
    from timm.task import LogitDistillationTask
    student, teacher = (timm.create_model('test_resnet', num_classes=4) for _ in range(2))
    loss = nn.CrossEntropyLoss()
    task = LogitDistillationTask(student, teacher, criterion=loss, temperature=3., verbose=False).eval()
    x = torch.randn(4, 3, 64, 64)
    theirs = task(x, torch.tensor([0, 1, 2, 3]))['kd_loss'].item()
    ours = soft_divergence(student.eval()(x), teacher.eval()(x), 3.).item()
    return abs(theirs - ours) < 1e-5*max(1, abs(ours)), 'T² KL of teacher and student: the same number'


def peft_statistics():
    from peft import LoraConfig, get_peft_model
    net, x, y = make_net()
    before = net[2].running_mean.clone()
    lora = get_peft_model(net, LoraConfig(target_modules=['1'], r=2)).train()
    cross_entropy(lora(x), y).backward()
    moved = moved_by(net, before)
    return moved == 0, (f"LoRA, base weights frozen: batch norm's statistics moved by {moved:.3f} in one batch "
                        "(sdfast's LoRA freezes them)")


PEERS = [('avalanche-lib', 'EWC: the Fisher information is of single samples', partial(avalanche_fisher, 32)),
         ('avalanche-lib', 'EWC: the same with batches of one', partial(avalanche_fisher, 1)),
         ('avalanche-lib', 'memory-aware synapses: the importance is of single samples', avalanche_mas_samples),
         ('avalanche-lib', 'memory-aware synapses: batch norm untouched', avalanche_mas_statistics),
         ('avalanche-lib', 'LwF: the teacher stays as it was', avalanche_lwf),
         ('avalanche-lib', 'feature distillation, mse', avalanche_features),
         ('avalanche-lib', 'LFL: the model stays in training mode', avalanche_lfl),
         ('timm', 'distillation: T² KL', timm_divergence), ('peft', 'LoRA: what is frozen stays', peft_statistics)]


def ask(package, question, check):
    "A row of the table"
    try: peer = f'{package} {version(package)}'
    except PackageNotFoundError: return [package, question, 'not installed', "pip install -e '.[peers]'"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            passed, seen = check()
    except Exception as e: return [peer, question, 'cannot run', f'{type(e).__name__}: {e}'.splitlines()[0]]
    return [peer, question, '✓' if passed else '✗', seen]


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    out:str='runs/peers.md', # Markdown file to write
):
    "Ask other libraries and print their answers"
    columns = [Column(title, numeric=False) for title in ('peer', 'check', '', 'what was seen')]
    table = Table(columns, [ask(*row) for row in PEERS], title='peers')
    with one_line_errors('peers.py', out):
        make_folder(Path(out).parent)
        store.write(out, table.to_markdown())
    Console(width=160).print(table.to_rich(160))
    print(f'written to {out}')
