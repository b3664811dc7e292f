"""Video transformers of the transformers library as encoders: VideoMAE, ViViT, TimeSformer and V-JEPA 2.

`FAMILIES` has what differs among them. transformers is imported only when such an encoder is made."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastai.vision.core import imagenet_stats
from torch import nn

from ..errors import InputError
from .clip_spec import ClipSpec, check_clips

__all__ = ['VideoTransformer']

IMAGENET = dict(mean=tuple(imagenet_stats[0]), std=tuple(imagenet_stats[1]))
HALF = dict(mean=(.5, .5, .5), std=(.5, .5, .5))
# settings of configurations that drop something in training
DROPOUT = ('hidden_dropout_prob', 'attention_probs_dropout_prob', 'attention_dropout', 'drop_path_rate')


class VideoTransformer(nn.Module):
    """A video transformer as an encoder: its tokens become one feature as its own classifier does it.

    `pooler`, if there is one, is the part of the classifier before its last layer: V-JEPA 2's attentive pooler, which
    takes the tokens, or VideoMAE's normalisation, which takes their mean."""
    base_model_prefix = 'body'  # as in transformers: blocks are those of the body

    def __init__(self,
        body:Any, # Maps clips `(B, T, C, H, W)` to tokens, in `last_hidden_state`
        clips:ClipSpec, # What clips it expects, and how tokens become a feature
        pooler:Any=None, # A module, see above
    ):
        super().__init__()
        self.body, self.clips = body, clips
        self.pooler: Any = pooler
        self.num_features = body.config.hidden_size

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        _adapt(self.body, x)
        tokens = self.body(x).last_hidden_state
        if self.clips.pooling == 'attentive': return self.pooler(tokens)
        f = tokens[:, 0] if self.clips.pooling == 'cls' else tokens.mean(1)
        return f if self.pooler is None else self.pooler(f)


def _adapt(body, x):
    "Tell a net with positions for any clip the shape of this one, which its layers read from elsewhere"
    config, frames, size = body.config, x.shape[1], x.shape[-1]
    if config.model_type == 'timesformer' and (config.num_frames, config.image_size) != (frames, size):
        config.num_frames, config.image_size = frames, size
    if config.model_type == 'vjepa2' and body.layer[0].attention.grid_size != size//config.patch_size:
        for layer in body.layer: layer.attention.grid_size = size//config.patch_size


@dataclass(frozen=True)
class Family:
    "What one family of video transformers needs to become an encoder"
    classifier: str  # class in transformers with the classification head
    base: str  # class without
    attribute: str  # name of the base model in the classifier
    stats: dict  # normalisation of its published checkpoints
    clips: Callable[[Any], dict]  # fields of the `ClipSpec` from a configuration
    pooling: Callable[[Any, bool], str]  # from a configuration, and whether there is a classifier
    body: Callable[[Any], nn.Module] = lambda base: base  # the encoder in the base model
    pooler: Callable[[Any], nn.Module|None] = lambda model: None  # part of the classifier that is kept
    kwargs: tuple = ()  # keyword arguments of the base class


def _one(size): return size if isinstance(size, int) else size[0]


def _fixed(config):
    tubelet = config.tubelet_size if isinstance(config.tubelet_size, int) else config.tubelet_size[0]
    return dict(frames=config.num_frames, size=_one(config.image_size), any_frames=False, any_size=False,
                frames_step=tubelet)


def _timesformer(config):
    return dict(frames=config.num_frames, size=_one(config.image_size), size_step=_one(config.patch_size))


def _vjepa2(config):
    return dict(frames=config.frames_per_clip, size=config.crop_size, frames_step=config.tubelet_size,
                size_step=_one(config.patch_size))


def _videomae_pooling(config, classifies): return 'mean' if config.use_mean_pooling or not classifies else 'cls'


# Positions: VideoMAE's are of one shape; ViViT's, too, as its interpolation in transformers is for images and fails on
# videos; TimeSformer interpolates in space and time; V-JEPA 2 rotates by the position, so that any shape will do
FAMILIES = dict(
    videomae=Family('VideoMAEForVideoClassification', 'VideoMAEModel', 'videomae', IMAGENET, _fixed, _videomae_pooling,
                    pooler=lambda model: model.fc_norm),
    vivit=Family('VivitForVideoClassification', 'VivitModel', 'vivit', HALF, _fixed, lambda config, classifies: 'cls',
                 kwargs=(('add_pooling_layer', False),)),
    timesformer=Family('TimesformerForVideoClassification', 'TimesformerModel', 'timesformer', IMAGENET, _timesformer,
                       lambda config, classifies: 'cls'),
    vjepa2=Family('VJEPA2ForVideoClassification', 'VJEPA2Model', 'vjepa2', IMAGENET, _vjepa2,
                  lambda config, classifies: 'attentive' if classifies else 'mean', body=lambda base: base.encoder,
                  pooler=lambda model: model.pooler))


def family_of(
    config:Any, # A configuration of transformers
    source:str, # Where it is from, for the error
)->Family: # Or an `InputError` for another model
    "The family of video transformers that a configuration is of"
    known = FAMILIES.get(config.model_type)
    if known: return known
    raise InputError(f'{source} is a {config.model_type}, and known are {", ".join(FAMILIES)}: write a function that '
                     'returns a module from clips (B, T, 3, H, W) to features, and name it as MODULE:FUNCTION')


def classifies(
    config:Any, # A configuration of transformers
)->bool:
    "Whether a checkpoint has a classification head, so that its pooling is trained"
    return any('ForVideoClassification' in name for name in config.architectures or ())


def transformer_class(
    config:Any, # A configuration of transformers
    source:str, # Where it is from, for the error
)->tuple[type, dict]: # The class, and keyword arguments for it
    "The class in transformers that has a checkpoint's encoder, and its pooler if that is trained"
    import transformers
    family = family_of(config, source)
    if classifies(config): return getattr(transformers, family.classifier), {}
    return getattr(transformers, family.base), dict(family.kwargs)


def as_encoder(
    model:nn.Module, # Of transformers, of the class that `transformer_class` names
    stats:dict, # `mean` and `std`, or {} for the family's
)->VideoTransformer: # Shares the model's weights
    "The encoder of a model of transformers, without its decoder, predictor or classifier"
    config = model.config
    family, has_head = family_of(config, type(model).__name__), classifies(config)
    base = getattr(model, family.attribute) if has_head else model
    clips = clip_spec_of(config, stats)
    return VideoTransformer(family.body(base), clips, family.pooler(model) if has_head else None)


def clip_spec_of(
    config:Any, # A configuration of transformers
    stats:dict, # `mean` and `std`, or {} for the family's
)->ClipSpec:
    "What clips a checkpoint expects"
    family = family_of(config, 'the model')
    pooling = family.pooling(config, classifies(config))
    return ClipSpec(**family.clips(config), **(stats or family.stats), pooling=pooling)
