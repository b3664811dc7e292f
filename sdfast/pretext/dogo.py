"Distill-on-the-go (DoGo): two encoders learn by contrast, each also from the other's similarities."
from collections.abc import Callable
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..errors import InputError
from ..models.encoders import create_encoder
from ..models.surgery import frozen_copy
from ..runtime.options import parse_options
from .augment import Blur, ColourJitter
from .cvrl import CVRL, nt_xent_logits

__all__ = ['similarity_kl', 'DoGo']


def similarity_kl(
    student:torch.Tensor, # Cosine similarities of clips to others `(N, M)`
    teacher:torch.Tensor, # Those of the other encoder; gets no gradient
    temperature:float=.1, # Divides similarities
)->torch.Tensor: # Scalar
    "KL divergence of the student's softmax over each row from the teacher's, divided by the number of entries, N*M"
    target = (teacher.detach()/temperature).softmax(1)
    return F.kl_div((student/temperature).log_softmax(1), target, reduction='sum')/student.numel()


class _Peers(nn.Module):
    "The head of the encoder, and its peer: another encoder and head"

    def __init__(self, head, peer, peer_head):
        super().__init__()
        self.head, self.peer, self.peer_head = head, peer, peer_head


def _redrawn(encoder):
    "A copy with new random weights in all layers that can draw them"
    copy = frozen_copy(encoder).requires_grad_(True).train(encoder.training)
    for m in copy.modules():
        if hasattr(m, 'reset_parameters'): m.reset_parameters()
    return copy


class DoGo(CVRL):
    """Train two encoders by contrast, each also towards the other's similarities of clips; the first is kept.

    The loss is `NT-Xent + w·KL(p' | p)` of each encoder: p are the softmaxes over a clip's similarities to the second
    clips of all videos of the batch, p' those of the other encoder, without gradient. Source: Bhat, Arani & Zonooz,
    CVPR workshops 2021, as trained by their code (NeurAI-Lab/DoGo), for images; videos, clips and crops are those of
    `CVRL`.

    Each encoder sees its own augmentation of both clips. The peer is another net (`peer`), or one like the encoder with
    new random weights: an equal copy would have nothing to teach. KL is a mean over all entries, as in the reference's
    code, so its weight depends on the batch size. `Pretext.save` writes both; `load_encoder` reads the first. Scores:
    `pair_acc` of CVRL, and `peer_acc`, the same of the peer; chance of each 1/2."""
    score_names: tuple[str, ...] = ('pair_acc', 'peer_acc')

    def __init__(self,
        weights:tuple=(1., 1., 100., 1.), # Of the two NT-Xent terms, then of the encoder's and the peer's KL
        peer:str|None=None, # Name of the peer's net, see `create_encoder`; `None`: as the encoder
        peer_args:str='', # For that net's constructor, `name=value,...`
        temperature:float=.5, # Divides similarities in NT-Xent
        kl_temperature:float=.1, # Divides similarities in KL
        layers:int=1, # Number of hidden layers of both heads
        hidden:int=512, # Width of the hidden layers
        dim:int=128, # Dimensions of the vectors that are compared
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each clip, with probability .8
        grey:float=.2, # Probability that a clip is grey
        blur:float=.5, # Probability that a clip is blurred
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if len(weights) != 4 or min(weights) < 0 or min(temperature, kl_temperature) <= 0:
            raise InputError('weights must be four numbers of at least 0, and temperatures above 0, not '
                             f'{weights}, {temperature} and {kl_temperature}')
        super().__init__(temperature, layers, hidden, dim, jitter, grey, encoder=encoder)
        store_attr('weights,peer,peer_args,kl_temperature,blur')
        # `jitter` has four values, so `p` is not given twice
        colours = ColourJitter(*jitter, p=.8, grey=grey)  # type: ignore[misc]
        self.batch_tfms = (colours, Blur((blur,)*4))

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        pair, label = super().sample(n, frames, stride, rnd)
        return [*pair, *pair], label

    def make_heads(self, encoder:nn.Module, n:int)->nn.Module:
        if self.peer is None: return _Peers(self.heads(n), _redrawn(encoder), self.heads(n))
        peer = create_encoder(self.peer, **parse_options(self.peer_args, 'peer_args'))
        return _Peers(self.heads(n), peer, self.heads(self._count_features(peer, None)))

    def forward(self, encoder:nn.Module, heads:_Peers, x:torch.Tensor)->tuple:
        # one clip after the other, so that batch norm sees them apart, as in the reference
        def own(i): return heads.head(encoder(x[:, i]))
        def peer(i): return heads.peer_head(heads.peer(x[:, i]))
        return self._compare(own(0), own(1), encoder.training), self._compare(peer(2), peer(3), encoder.training)

    def _compare(self, a, b, training):
        "Logits of NT-Xent in both directions, similarities of first to second clips, and the place of the own ones"
        a, b = (F.normalize(z.float(), dim=1) for z in (a, b))
        all_a, all_b, first = a, b, 0
        if training and dist.is_available() and dist.is_initialized():
            from torch.distributed.nn.functional import all_gather  # not in builds without torch.distributed
            first = dist.get_rank()*len(a)
            all_a, all_b = (torch.cat(all_gather(part)) for part in (a, b))
        return (nt_xent_logits(a, all_b, all_a, first, self.temperature),
                nt_xent_logits(b, all_a, all_b, first, self.temperature),
                a @ all_b.T, first + torch.arange(len(a), device=a.device))

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        contrast = [(F.cross_entropy(of_a, own) + F.cross_entropy(of_b, own))/2 for of_a, of_b, _, own in pred]
        one, two = (similarities for *_, similarities, _ in pred)
        kl = similarity_kl(one, two, self.kl_temperature), similarity_kl(two, one, self.kl_temperature)
        return sum(w*term for w, term in zip(self.weights, (*contrast, *kl)))

    @property
    def chances(self)->dict: return dict.fromkeys(self.score_names, .5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        def hits(similarities, own):
            def to(place): return similarities.gather(1, place[:, None])[:, 0]
            return to(own) > to(own.roll(-1))
        return {name:hits(*found[2:]) for name, found in zip(self.score_names, pred)}
