"""What does exact importance cost, compared with an ordinary backward pass over the same samples?

    python experiments/benchmarks/fisher.py            # a quarter of an hour on 2 CPU cores
    python experiments/benchmarks/fisher.py --quick    # the tiny net alone, half a minute

The empirical Fisher information and MAS of an encoder from n clips: one ordinary forward and backward pass over all n clips (`backward`, with gradients of all weights; no per-sample
gradients come out), sample by sample (`loop`, what any model gets), and samples together (`fisher`, `mas`: what sdfast does), in turns in one process, which keeps freed memory, as studies do. The ratios are to `backward`, of seconds of the
process on a CPU, of the wall clock on a GPU. Writes fisher.json to --out. Goals: 1.4 of backward on a CPU, an eighth of the loop on a GPU."""
import warnings

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
import torch.nn.functional as F
from bench import Timer, in_turns, prepare, record, show, summary
from fastcore.script import call_parse

from sdfast.models.encoders import create_model
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import empirical_fisher, mas_importance


@call_parse
def main(
    models:str='tiny,r2plus1d,r2plus1d_18,c3d', # Nets, by commas
    n:int=0, # Clips; 0: 64 for the tiny net, 32 for others
    frames:int=8, # Of a clip
    size:int=0, # Height and width; 0: 40 for the tiny net, 56 for others
    chunk:int=16, # Samples at once
    rounds:int=5, # Of all ways
    threads:int=1, # Of torch
    device:str='cpu', # Or cuda
    quick:bool=False, # The tiny net alone
    out:str='runs/benchmarks', # Folder for fisher.json
):
    "Seconds of importance, and ratios"
    prepare(device, threads)
    kept = device == 'cpu' and keep_freed_memory()
    timer, found = Timer(device), {}
    for name in ['tiny'] if quick else models.split(','):
        clips, edge = n or (64 if name == 'tiny' else 32), size or (40 if name == 'tiny' else 56)
        torch.manual_seed(0)
        net = create_model(name, 60).to(device).eval()
        x, y = torch.randn(clips, frames, 3, edge, edge, device=device), torch.randint(0, 60, (clips,), device=device)
        weights = list(net[0].parameters())
        ways = dict(backward=lambda: torch.autograd.grad(F.cross_entropy(net(x), y), weights), loop=lambda: empirical_fisher(net, [(x, y)], chunk=1),
                    fisher=lambda: empirical_fisher(net, [(x, y)], chunk=chunk), mas=lambda: mas_importance(net, [(x, y)], chunk=chunk))
        def timed(way):
            since = timer.now()
            way()
            return timer.now() - since
        rows = summary(in_turns({w:lambda f=f: timed(f) for w, f in ways.items()}, rounds), 'backward', device)
        a, b = (empirical_fisher(net, [(x, y)], chunk=c).diag for c in (1, chunk))
        error = max(((a[k] - b[k]).abs().max()/a[k].abs().max()).item() for k in a)
        found[name] = dict(clips=clips, frames=frames, size=edge, error=error, ways=rows)
        show(f'{name}: {clips} clips {frames}x{edge}x{edge}, {chunk} at once', rows)
        print(f'loop / fisher {rows["loop"]["min"]/rows["fisher"]["min"]:.2f}; largest difference to the loop {error:.1e} of a weight tensor\'s largest', flush=True)
        record(out, 'fisher', dict(chunk=chunk, rounds=rounds, kept_freed_memory=kept, models=found), device)
