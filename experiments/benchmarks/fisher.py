"""What does exact importance cost, compared with an ordinary backward pass over the same samples?

    python experiments/benchmarks/fisher.py            # a quarter of an hour on 2 CPU cores
    python experiments/benchmarks/fisher.py --quick    # the tiny net alone, half a minute

Computes the empirical Fisher information and the importance of memory-aware synapses (`mas`) of an encoder from n
clips, in these ways: `backward`, one ordinary forward and backward pass over all n clips with gradients of all
weights (it yields no per-sample gradients); `loop`, sample by sample, which works for any model; and `fisher` and
`mas`, several samples at once, as sdfast does it. They take turns in one process, which keeps freed memory, as
studies do. Ratios are to `backward`, of processor seconds on a CPU and of the wall clock on a GPU. Writes fisher.json
to --out.
Goals: 1.4 of backward on a CPU, an eighth of the loop on a GPU."""
import warnings

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
from fastcore.script import call_parse, store_true
from measure import Timer, in_turns, set_device, show_ratios, summary, write
from torch.nn.functional import cross_entropy

from sdfast.models.encoders import create_model
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import empirical_fisher, mas_importance


def largest_error(a, b):
    "Largest difference of two importances, relative to the largest value of each weight tensor"
    return max(((a[k] - b[k]).abs().max()/a[k].abs().max()).item() for k in a)


@call_parse
def main(
    models:str='tiny,r2plus1d,r2plus1d_18,c3d', # Nets, separated by commas
    n:int=0, # Clips; 0: 64 for the tiny net, 32 for others
    frames:int=8, # Frames in a clip
    size:int=0, # Height and width; 0: 40 for the tiny net, 56 for others
    chunk:int=16, # Samples at once
    rounds:int=5, # Rounds of all ways
    threads:int=1, # Threads of torch
    device:str='cpu', # Or cuda
    quick:store_true=False, # The tiny net alone
    out:str='runs/benchmarks', # Folder for fisher.json
):
    "Seconds of importance, and ratios"
    set_device(device, threads)
    kept = device == 'cpu' and keep_freed_memory()
    timer = Timer(device)
    found = {}
    for name in ['tiny'] if quick else models.split(','):
        tiny = name == 'tiny'
        clips = n or (64 if tiny else 32)
        edge = size or (40 if tiny else 56)
        torch.manual_seed(0)
        net = create_model(name, 60).to(device).eval()
        x = torch.randn(clips, frames, 3, edge, edge, device=device)
        y = torch.randint(0, 60, (clips,), device=device)
        weights = list(net[0].parameters())
        ways = dict(backward=lambda: torch.autograd.grad(cross_entropy(net(x), y), weights),
                    loop=lambda: empirical_fisher(net, [(x, y)], chunk=1),
                    fisher=lambda: empirical_fisher(net, [(x, y)], chunk=chunk),
                    mas=lambda: mas_importance(net, [(x, y)], chunk=chunk))
        taken = in_turns({w:lambda f=f: timer.of(f) for w, f in ways.items()}, rounds)
        rows = summary(taken, 'backward', device)
        error = largest_error(ways['loop']().diag, ways['fisher']().diag)
        found[name] = dict(clips=clips, frames=frames, size=edge, error=error, ways=rows)
        show_ratios(f'{name}: {clips} clips {frames}x{edge}x{edge}, {chunk} at once', rows)
        speed = rows['loop']['min']/rows['fisher']['min']
        print(f'loop / fisher {speed:.2f}; largest difference to the loop, '
              f'relative to the largest of a weight tensor: {error:.1e}', flush=True)
        write(out, 'fisher', device, threads=threads, chunk=chunk, rounds=rounds, kept_freed_memory=kept, models=found)
