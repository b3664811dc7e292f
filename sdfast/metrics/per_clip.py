"Measures clip by clip: whether an answer is right, how far it is from that of the untouched encoder."
import torch
from torch.nn.functional import log_softmax, normalize

from ..errors import InputError
from ..strategies.outputs import ACTIVATIONS
from ..strategies.targets import two_classes
from .features import RETRIEVAL_AT, right_neighbours
from .reading import ClipFeatures, Evidence

__all__ = ['answer_divergence', 'kept_neighbours']

NEIGHBOURS = 10  # of a clip, in another encoder's features
ROWS = 1024  # clips whose similarities to all others are computed at once


def right_answers(
    found:Evidence, # From `Retention.measure`, with labelled clips
    with_bn:bool, # Whether batch-norm statistics were recomputed
)->dict[str, torch.Tensor]: # Measure -> whether each test clip is right `(N,)`, whose mean is the measure
    "Which clips the old head, a new probe and the neighbours get right"
    train, test = found.readings['train_dl'], found.readings['test_dl']
    right = {}
    if test.logits is not None: right['source_acc'] = test.logits.argmax(1) == test.y
    if with_bn and found.recomputed is not None:
        right['source_acc_bn'] = found.recomputed.logits.argmax(1) == test.y
    right['source_probe'] = torch.tensor(found.probe.predict(test.x.numpy()) == test.y.numpy())
    assert train.y is not None and test.y is not None  # these loaders have labels
    right['source_knn'] = right_neighbours(train.x, train.y, test.x, test.y)
    return right | retrieved(train, test) | found.extra


def retrieved(
    train:ClipFeatures, # The gallery
    test:ClipFeatures, # The queries
)->dict[str, torch.Tensor]: # r1, r5, ... -> `(N,)`
    "Which test clips have one of their class among the nearest train clips, see `retrieval`"
    x, xt = (normalize(f.x.double(), dim=1) for f in (train, test))
    assert train.y is not None and test.y is not None  # these loaders have labels
    near = (xt @ x.T).topk(min(max(RETRIEVAL_AT), len(x))).indices
    first = (train.y[near] == test.y[:, None]).cumsum(1) > 0
    return {f'r{k}':first[:, k - 1] for k in RETRIEVAL_AT if k <= len(x)}


def answer_divergence(
    logits:torch.Tensor, # Of a head `(N, classes)`
    before:torch.Tensor, # Of the same head on the untouched encoder
    activation:str|None=None, # 'softmax', or 'sigmoid' for independent logits; `None`: 'sigmoid' for a single logit
)->torch.Tensor: # `(N,)` in nats; exactly 0 for equal logits
    """Kullback-Leibler divergence of a head's answers from those on the untouched encoder, `KL(before || after)`; of
    independent logits the sum over these.

    It is what `KLToBase` holds down while training. Raises `InputError` for a softmax of one logit."""
    n, classes = logits.shape
    if activation is None: activation = ACTIVATIONS[classes == 1]
    if activation not in ACTIVATIONS or activation == 'softmax' and classes == 1:
        raise InputError(f"activation must be 'sigmoid' for a head of one logit, else 'softmax' or 'sigmoid': not "
                         f'{activation!r} for {classes}')
    if activation == 'sigmoid': logits, before = (two_classes(x).flatten(0, -2) for x in (logits, before))
    p, q = (log_softmax(x.double(), 1) for x in (before, logits))
    return (p.exp()*(p - q)).sum(1).clamp(min=0).view(n, -1).sum(1)


def kept_neighbours(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the same clips by the untouched encoder
    k:int=NEIGHBOURS, # Number of neighbours, at most N - 1
)->torch.Tensor: # `(N,)`, exactly 1 for equal features
    "Share of each clip's nearest clips, by cosine, that it keeps"
    k = min(k, len(x) - 1)
    if k < 1: return torch.ones(len(x), dtype=torch.double)
    near = [_nearest(f, k) for f in (x, ref)]
    return (near[0][:, :, None] == near[1][:, None]).any(2).double().mean(1)


def _nearest(f, k):
    f, near = normalize(f.double(), dim=1), []
    for start in range(0, len(f), ROWS):
        similar = f[start:start + ROWS] @ f.T
        rows = torch.arange(len(similar))
        similar[rows, start + rows] = -2  # a clip is no neighbour of its own
        near.append(similar.topk(k).indices)
    return torch.cat(near)
