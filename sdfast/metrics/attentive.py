"A probe that attends to an encoder's tokens, for encoders whose mean over tokens hides what single tokens know."
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from ..errors import InputError
from ..models.features import outputs_of, to_maps
from ..models.labels import clip_labels
from ..models.surgery import block_names
from .features import warn_of_unseen
from .reading import preserve_rng

__all__ = ['AttentiveProbe', 'attentive_probe', 'KeepTokens']

MOST_BYTES = 2**33  # of the tokens of one loader
BATCH, LR, WD = 64, 2e-3, .01  # of a fit: AdamW, cosine to 0
EPOCHS, STEPS = 20, 600  # at least so many


class AttentiveProbe(nn.Module):
    """Classify clips by their tokens: a learned query attends to them, and a linear layer reads the result.

    It is the probe of V-JEPA 2's evaluation (Assran et al., 2025) without the blocks that come before and after its
    cross-attention. Tokens are standardised by channel, with the numbers of the train clips."""
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self,
        width:int, # Channels of a token
        n_classes:int, # Number of classes
        heads:int|None=None, # Of the attention; `None`: one for 64 channels, if it divides them
    ):
        super().__init__()
        if heads is None: heads = max(1, width//64) if width % max(1, width//64) == 0 else 1
        self.query = nn.Parameter(.02*torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.classify = nn.Linear(width, n_classes)
        self.register_buffer('mean', torch.zeros(width))
        self.register_buffer('scale', torch.ones(width))

    def forward(self, x:torch.Tensor)->torch.Tensor: # Tokens `(B, N, C)` to logits
        x = (x - self.mean)/self.scale
        attention, heads = self.attention, self.attention.num_heads
        # all clips share the query, so it is brought into the space of the tokens, not each token into its space
        of_query, of_keys, of_values = (w.unflatten(0, (heads, -1)) for w in attention.in_proj_weight.chunk(3))
        bias, _, value_bias = (b.unflatten(0, (heads, -1)) for b in attention.in_proj_bias.chunk(3))
        query = of_query @ self.query[0, 0] + bias
        look = torch.einsum('hd,hdc->hc', query, of_keys)/query.shape[1]**.5
        shares = linear(x, look).softmax(1)
        found = torch.einsum('bth,btc->bhc', shares, x)
        values = torch.einsum('bhc,hdc->bhd', found, of_values) + value_bias
        return self.classify(attention.out_proj(values.flatten(1)))


def fit_attentive(
    x:torch.Tensor, # Tokens of the train clips `(N, T, C)`
    y:torch.Tensor, # Class numbers from 0 `(N,)`
    device:torch.device|str='cpu', # Where to train
    epochs:int|None=None, # As for `attentive_probe`
    seed:int=0, # Of the weights and the order
)->AttentiveProbe: # In eval mode
    "Train an `AttentiveProbe` on frozen tokens; the random state stays as it is"
    batches = -(-len(x)//BATCH)
    if epochs is None: epochs = max(EPOCHS, -(-STEPS//batches))
    with preserve_rng():
        torch.default_generator.manual_seed(seed)
        probe = AttentiveProbe(x.shape[2], int(y.max()) + 1)
        std, mean = torch.std_mean(x, (0, 1), correction=0)
        probe.mean, probe.scale = mean, torch.where(std > 0, std, torch.ones_like(std))
        probe.to(device)
        opt = torch.optim.AdamW(probe.parameters(), lr=LR, weight_decay=WD)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs*batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                loss = cross_entropy(probe(x[rows].to(device)), y[rows].to(device))
                opt.zero_grad()
                loss.backward()
                opt.step()
                schedule.step()
    return probe.eval()


def attentive_right(
    x:torch.Tensor, # As for `attentive_probe`
    y:torch.Tensor, # Labels of the train clips
    xt:torch.Tensor, # Tokens of the test clips
    yt:torch.Tensor, # Their labels
    device:torch.device|str='cpu', # Where to train
    epochs:int|None=None, # As for `attentive_probe`
    seed:int=0, # Of the weights and the order
)->torch.Tensor: # `(M,)`
    "Which test clips an attentive probe gets right"
    for tokens in (x, xt):
        if tokens.ndim == 3: continue
        raise InputError(f'an attentive probe needs tokens (N, T, C), not features of shape {tuple(tokens.shape)}')
    y, yt = clip_labels(y, 'labels of the probe', len(x)), clip_labels(yt, 'test labels', len(xt))
    classes, numbers = y.unique(return_inverse=True)
    if len(classes) < 2: raise InputError(f'a probe needs train clips of at least two classes, not {len(classes)}')
    if not torch.isfinite(x).all(): raise FloatingPointError('the tokens are not finite')
    warn_of_unseen(classes, yt)
    probe = fit_attentive(x.float(), numbers, device, epochs, seed)
    with torch.no_grad(): answers = [probe(part.float().to(device)).argmax(1).cpu() for part in xt.split(BATCH)]
    return classes[torch.cat(answers)] == yt


def attentive_probe(
    x:torch.Tensor, # Tokens of the train clips `(N, T, C)`
    y:torch.Tensor, # Their labels `(N,)`
    xt:torch.Tensor, # Tokens of the test clips `(M, T, C)`
    yt:torch.Tensor, # Their labels `(M,)`
    device:torch.device|str='cpu', # Where to train
    epochs:int|None=None, # Passes over the train clips; `None`: 20, or as many as make 600 steps
    seed:int=0, # Of the weights and the order
)->float: # Accuracy, from 0 to 1
    """Test accuracy of an `AttentiveProbe` that is trained on frozen tokens.

    AdamW, learning rate .002 with a cosine to 0, batches of 64; equal tokens give equal accuracies. Raises `InputError`
    for fewer than two classes, `FloatingPointError` for tokens that are not finite."""
    return attentive_right(x, y, xt, yt, device, epochs, seed).double().mean().item()


class KeepTokens:
    """`outputs_of` that also keeps tokens: those that the encoder returns, or the places of its maps.

    Of an encoder that averages them by itself, they are of its last block that has any; `layer` is its name. Tokens of
    frames that a layer gets one by one, and of several clips of a video, follow one another. Raises `InputError` for
    an encoder without tokens, and for more than 8 GiB."""
    def __init__(self,
        outputs_of:Callable=outputs_of, # What it calls
    ):
        self.outputs_of, self._batches = outputs_of, list[torch.Tensor]()
        self.layer: str|None = None  # '' for what the encoder returns; `None` before the first batch

    def __call__(self, encoder:nn.Module, x:torch.Tensor, layers:Sequence[str]=())->tuple:
        names = ['', *reversed(block_names(encoder))] if self.layer is None else [self.layer]
        calls: dict[str, list] = {name:[] for name in names}

        def keep(name):
            def hook(module, args, kwargs, out): calls[name].append((module, out, args, kwargs))
            return encoder.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
        handles = [keep(name) for name in names]
        try: found = self.outputs_of(encoder, x, layers)
        finally:
            for h in handles: h.remove()
        clips = x.shape[0]*x.shape[1] if x.ndim == 6 else len(x)
        for name in names:
            tokens = _tokens_of(calls[name], clips)
            if tokens is not None: break
        else:
            raise InputError(f'an attentive probe needs tokens (B, N, C) or maps, and neither {type(encoder).__name__} '
                             'nor one of its blocks returns any: leave source_attentive out')
        self.layer = name
        self._add(tokens.unflatten(0, x.shape[:2]).flatten(1, 2) if x.ndim == 6 else tokens)
        return found

    def _add(self, tokens):
        self._batches.append(tokens.float().cpu())
        size = sum(t.nbytes for t in self._batches)
        if size > MOST_BYTES:
            raise InputError(f'the tokens of {sum(map(len, self._batches))} clips take {size/2**30:.0f} GiB: pass '
                             'loaders of fewer clips, or leave source_attentive out')

    @property
    def tokens(self)->torch.Tensor:
        "`(N, T, C)` float32, on the CPU"
        return torch.cat(self._batches)


def _tokens_of(calls, clips):
    "The tokens `(clips, N, C)` of a module's only call; `None` if it returned one for each clip, or something else"
    if len(calls) != 1: return None
    try: maps = to_maps(*calls[0])
    except InputError: return None
    if len({m.shape[1] for m in maps}) > 1 or any(len(m) % clips for m in maps): return None
    tokens = [m.flatten(2).transpose(1, 2) if m.ndim > 2 else m[:, None] for m in maps]
    joined = torch.cat([t.unflatten(0, (clips, -1)).flatten(1, 2) for t in tokens], 1)
    return joined if joined.shape[1] > 1 else None
