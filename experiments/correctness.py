"""Is each strategy what it says it is? The tests as a table: strategy by check.

    python experiments/correctness.py --out runs/correctness.md      # needs pip install -e '.[dev]'; the peers' part '.[peers]'

Each cell is the outcome of the tests of that name for that strategy: ✓ all passed, ✗ one failed, a dash where the check has no
meaning for it (a spectrum and statistics of a batch are others for micro-batches and for a process's part), `skipped` where
something it needs is not installed. Below, where peers are installed, what the same checks say of them."""
import os
import sys
import warnings
from collections import defaultdict
from copy import deepcopy
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastcore.script import call_parse
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
# check -> names of tests, which are parametrized with the strategy
CHECKS = {
    'formula': ['golden'],
    'λ=0 is plain': ['test_lam_0_is_plain_fine_tuning_to_the_bit', 'test_so_is_lam_0_with_options', 'test_the_end_of_the_scale_is_plain_fine_tuning_to_the_bit'],
    'losses, BN untouched': ['test_reported_losses_are_the_task_loss', 'test_reported_losses_are_the_task_loss_and_buffers_stay', 'test_batch_norm_of_a_recipe'],
    'accumulation': ['test_accumulation_equals_one_big_batch'],
    'bf16': ['test_bf16_autocast_keeps_the_meaning', 'test_composes_with_penalties_mixed_precision_and_accumulation'],
    'loss scaling': ['test_loss_scaling_changes_nothing', 'test_a_step_that_the_scaler_skips_is_no_step'],
    '2 processes': ['test_two_processes_equal_one'],
    'freezing': ['test_freezing_keeps_the_meaning'],
    'resume': ['test_every_strategy_goes_on_to_the_bit'],
    'validate, lr_find, 2nd fit': ['test_validate_get_preds_and_lr_find_change_nothing', 'test_the_anchor_survives_whatever_a_learner_does'],
    'exception': ['test_an_exception_leaves_no_hook_no_column_and_no_graph', 'test_interrupts_leave_nothing_behind', 'test_a_fit_that_fails_before_its_first_epoch_leaves_nothing_either'],
    'save, export': ['test_saved_models_hold_no_teacher', 'test_export_is_no_larger_and_training_on_says_what_is_missing', 'test_export_is_no_larger', 'test_export_and_save_carry_nothing_extra'],
}
# tests of one strategy, by what they begin with
GOLDEN = dict(
    self_distill=['test_self_distill_equals', 'test_self_distill_is_the_papers', 'test_several_layers'], fixed_teacher=['test_fixed_teacher_equals'], ldifs=['test_several_layers'],
    ema_teacher=['test_ema_teacher_equals', 'test_ema_teacher_moves'], lwf=['test_lwf', 'test_soft_divergence'], feature_maps=['test_feature_maps', 'test_map_distance'],
    delta=['test_feature_maps', 'test_channel_attention'], pskd=['test_pskd'], byot=['test_byot'], l2sp=['test_l2sp', 'test_implicit_step_of_adam'],
    ewc=['test_ewc', 'test_exact_fisher', 'test_sampled_fisher', 'test_empirical', 'test_fisher_equals', 'test_weighted_penalties', 'test_implicit', 'test_the_bound', 'test_avalanche'],
    mas=['test_mas_equals', 'test_weighted_penalties'], lp_ft=['test_lpft'], wise_ft=['test_reestimate'], layer_decay=['test_schedules'], lower_lr=['test_schedules'], si=['test_path_integral', 'test_weighted_penalties'])


class Outcomes:
    "A pytest plugin that remembers what became of each test"
    def __init__(self): self.of = {}
    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or report.outcome != 'passed': self.of[report.nodeid] = report.outcome


def mark(outcomes):
    if not outcomes: return '–'
    return '✗' if 'failed' in outcomes else '✓' if 'passed' in outcomes else 'skipped'


def grid(of, names):
    "`{strategy: {check: mark}}` from outcomes by test id"
    by_test = defaultdict(list)
    for node, outcome in of.items():
        test, _, param = node.rpartition('::')[2].partition('[')
        by_test[test].append((param.rstrip(']'), outcome))
    table = {}
    for name in names:
        row = {}
        for check, tests in CHECKS.items():
            if check == 'formula':
                found = [o for test, runs in by_test.items() if any(test.startswith(g) for g in GOLDEN.get(name, ())) for _, o in runs]
                found += [o for node, o in of.items() if f'test_{name}_' in node or f'test_{name}[' in node or node.endswith(f'test_{name}')]
            else: found = [o for t in tests for param, o in by_test.get(t, []) if name in param.split('-')]
            row[check] = mark(found)
        table[name] = row
    return table


# --- the same questions to peers -------------------------------------------------------------------------------------

def _net():
    import torch
    from torch import nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 1, 6, 6), torch.randint(0, 3, (64,))


class _Set:
    def __init__(self, x, y): self.x, self.y, self.collate_fn = x, y, None
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i], 0


def avalanche_fisher(bs):
    import torch
    from avalanche.training.plugins import EWCPlugin

    from sdfast.strategies import empirical_fisher
    net, x, y = _net()
    data = _Set(x, y)
    del data.collate_fn
    theirs = EWCPlugin(1.).compute_importances(net, torch.nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), .1), data, 'cpu', bs)
    ours = empirical_fisher(net, [(x, y)], encoder=lambda m: m)
    share = sum(i.data.sum() for i in theirs.values())/sum(f.sum() for f in ours.diag.values())
    return abs(share - 1) < .01, f'batches of {bs}: its sum is {share:.3f} of the mean of per-sample squares'


def avalanche_mas(what):
    import torch
    from avalanche.training.plugins import MASPlugin

    from sdfast.strategies import mas_importance
    net, x, y = _net()
    if what == 'samples': net[2] = torch.nn.Identity()  # without batch norm the mode makes no difference
    data, before = _Set(x, y), deepcopy(net)
    del data.collate_fn
    theirs = MASPlugin()._get_importance(SimpleNamespace(model=net, experience=SimpleNamespace(dataset=data), train_mb_size=32, device='cpu', optimizer=torch.optim.SGD(net.parameters(), .1)))
    if what == 'statistics':
        moved = (net[2].running_mean - before[2].running_mean).abs().max().item()
        return moved == 0, f'taking it moved batch norm\'s statistics by {moved:.3f} with 64 samples'
    share = sum(i.data.sum() for i in theirs.values())/sum(f.sum() for f in mas_importance(net, [(x, y)], encoder=lambda m: m).diag.values())
    return abs(share - 1) < .01, f'batches of 32: its sum is {share:.3f} of the mean of per-sample sizes'


def avalanche_features():
    import torch
    from avalanche.training.plugins import FeatureDistillationPlugin
    net, x, y = _net()
    net.features, plugin = net[:4](x), FeatureDistillationPlugin(1., 'mse')
    plugin.prev_model = net
    plugin.before_backward(SimpleNamespace(mb_x=x, mb_task_id=None, model=net, loss=torch.zeros(())))
    return True, 'mean squared distance'


def avalanche_lfl():
    from avalanche.training.plugins import LFLPlugin
    net, x, y = _net()
    net.get_features = lambda x: net[:4](x)
    plugin = LFLPlugin(1.)
    plugin.prev_model = net
    net.train()
    plugin.penalty(x, net, 1.)
    return net.training, 'the penalty leaves the model in evaluation mode' if not net.training else 'it does'



def avalanche_lwf():
    from avalanche.training.regularization import LearningWithoutForgetting
    net, x, y = _net()
    lwf = LearningWithoutForgetting(1., 2.)
    lwf.prev_model, before = deepcopy(net), net[2].running_mean.clone()
    lwf.prev_classes_by_task = {0: {0, 1, 2}}
    net.train()
    lwf._lwf_penalty(net(x), x, 1.)
    moved = (lwf.prev_model[2].running_mean - before).abs().max().item()
    free = any(p.requires_grad for p in lwf.prev_model.parameters())
    return moved == 0 and not free, f'a teacher copied from a net in train mode: its statistics moved by {moved:.3f} in one batch'


def timm_kl():
    import timm
    import torch
    from timm.task import LogitDistillationTask

    from sdfast.strategies import soft_divergence
    a, b = (timm.create_model('test_resnet', num_classes=4) for _ in range(2))
    kd = LogitDistillationTask(a, b, criterion=torch.nn.CrossEntropyLoss(), temperature=3., verbose=False).eval()
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    out = kd(x, y)['kd_loss'].item()
    ours = soft_divergence(a.eval()(x), b.eval()(x), 3.).item()
    return abs(out - ours) < 1e-5*max(1, abs(ours)), 'T² KL of teacher and student: the same number'


def peft_statistics():
    import torch
    from peft import LoraConfig, get_peft_model
    net, x, y = _net()
    before = net[2].running_mean.clone()
    lora = get_peft_model(net, LoraConfig(target_modules=['1'], r=2)).train()
    torch.nn.functional.cross_entropy(lora(x), y).backward()
    moved = (net[2].running_mean - before).abs().max().item()
    return moved == 0, f'LoRA, base weights frozen: batch norm\'s statistics moved by {moved:.3f} in one batch (sdfast\'s LoRA freezes them)'


PEERS = [('avalanche-lib', 'EWC: the Fisher information is of single samples', partial(avalanche_fisher, 32)),
         ('avalanche-lib', 'EWC: the same with batches of one', partial(avalanche_fisher, 1)),
         ('avalanche-lib', 'MAS: the importance is of single samples', partial(avalanche_mas, 'samples')), ('avalanche-lib', 'MAS: batch norm untouched', partial(avalanche_mas, 'statistics')),
         ('avalanche-lib', 'LwF: the teacher stays as it was', avalanche_lwf), ('avalanche-lib', 'feature distillation, mse', avalanche_features),
         ('avalanche-lib', 'LFL: the model goes on in training mode', avalanche_lfl),
         ('timm', 'distillation: T² KL', timm_kl), ('peft', 'LoRA: what is frozen stays', peft_statistics)]


def peers():
    "Rows `(peer, check, mark, what was seen)`"
    rows = []
    for package, what, check in PEERS:
        try: v = version(package)
        except PackageNotFoundError:
            rows.append((package, what, 'not installed', "pip install -e '.[peers]'"))
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                ok, text = check()
            rows.append((f'{package} {v}', what, '✓' if ok else '✗', text))
        except Exception as e: rows.append((f'{package} {v}', what, 'cannot run', f'{type(e).__name__}: {e}'.splitlines()[0]))
    return rows


def markdown(headers, rows): return '\n'.join(['| ' + ' | '.join(headers) + ' |', '|---'*len(headers) + '|', *('| ' + ' | '.join(r) + ' |' for r in rows)])


@call_parse  # runs at once in a script, so it comes last
def main(
    out:str='runs/correctness.md', # Markdown file to write
):
    "Run the tests of the strategies and print strategy by check"
    os.chdir(ROOT)
    from sdfast.strategies import STRATEGIES
    seen, files = Outcomes(), [f'tests/test_{n}.py' for n in ('strategies', 'distill', 'anchor', 'features', 'recipes', 'distributed', 'protocol', 'resume')]
    status = pytest.main(['-q', '--no-header', '--durations=0', '-p', 'no:cacheprovider', *files], plugins=[seen])
    table = grid(seen.of, STRATEGIES)
    console, headers, rows = Console(width=160), ['strategy', *CHECKS], [[n, *r.values()] for n, r in table.items()]
    for title, h, rs in (('strategy by check', headers, rows), ('peers', ['peer', 'check', '', 'what was seen'], p := [list(r) for r in peers()])):
        t = Table(title=title)
        for c in h: t.add_column(c, justify='left' if h is not headers or c == 'strategy' else 'center')
        for r in rs: t.add_row(*r)
        console.print(t)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(f'{markdown(headers, rows)}\n\n{len(seen.of)} tests.\n\n{markdown(["peer", "check", "", "what was seen"], p)}\n')
    console.print(f'written to {out}')
    sys.exit(int(status))
