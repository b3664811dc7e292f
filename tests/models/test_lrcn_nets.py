"LRCN: an LSTM over the features of frames, whose order matters."
import pytest
import torch
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder, create_model, is_model, model_stats
from sdfast.models.layers import encoder_layers
from sdfast.models.model_folder import save_pretrained
from sdfast.models.pretrained import from_pretrained
from sdfast.models.surgery import block_names, frozen_copy


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    return create_model('lrcn:test_resnet', 5, hidden=16, **kwargs).eval()


def lstm_by_hand(f, lstm):
    "Outputs `(B, T, H)` of an LSTM, gate by gate (Hochreiter & Schmidhuber; no peepholes)"
    h = c = f.new_zeros(len(f), lstm.hidden_size)
    out = []
    for t in range(f.shape[1]):
        gates = f[:, t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, forget, new, o = gates.chunk(4, 1)
        c = forget.sigmoid()*c + i.sigmoid()*new.tanh()
        h = o.sigmoid()*c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def test_the_score_is_the_mean_of_the_frames_scores():
    model, x = make(), torch.randn(3, 6, 3, 32, 32)
    encoder, head = model
    with torch.no_grad():
        frames = torch.stack([encoder.body(x[:, t]) for t in range(6)], 1)
        outputs = lstm_by_hand(frames, encoder.lstm)
        scores = torch.stack([head(outputs[:, t]) for t in range(6)])
        torch.testing.assert_close(model(x), scores.mean(0), rtol=1e-4, atol=1e-5)
        assert encoder(x).shape == (3, 16) == (3, encoder.num_features)


def test_the_order_of_frames_matters():
    encoder, x = make()[0], torch.randn(2, 6, 3, 32, 32)
    frames_only = create_encoder('test_resnet').eval()
    with torch.no_grad():
        assert (encoder(x) - encoder(x.flip(1))).abs().max() > 1e-4
        torch.testing.assert_close(frames_only(x), frames_only(x.flip(1)), rtol=1e-4, atol=1e-5)


def test_a_frozen_copy_gives_exactly_what_the_net_gives_in_training():
    encoder, x = make()[0].train(), torch.randn(2, 6, 3, 32, 32)
    encoder.body.eval()  # whose batch norm is not what is tested
    f = encoder(x)
    with torch.no_grad(): assert torch.equal(frozen_copy(encoder)(x), f)


def test_any_image_net_of_timm_by_name():
    assert is_model('lrcn:vit_tiny_patch16_224') and not is_model('lrcn:no_such_net')
    assert model_stats('lrcn:vit_tiny_patch16_224')[0] == (.5, .5, .5)
    with torch.device('meta'): encoder = create_encoder('lrcn:vit_tiny_patch16_224', img_size=32)
    assert encoder.lstm.input_size == 192 and encoder.num_features == 256
    with pytest.raises(InputError, match='frames of 64x64 pixels, expected 32x32'):
        encoder(torch.zeros(1, 2, 3, 64, 64, device='meta'))


@pytest.mark.parametrize('net, kwargs', [('test_resnet', {}), ('test_vit', dict(img_size=32)),
                                         ('convnext_atto', {})])
def test_layers_end_with_the_lstm(net, kwargs):
    "What timm counts to the head of the image net belongs to its last layer, since the LSTM follows"
    with torch.device('meta'): encoder = create_encoder(f'lrcn:{net}', **kwargs)
    names, layers = block_names(encoder), encoder_layers(encoder)
    assert names == [*(f'body.{n}' for n in block_names(encoder.body)), 'lstm'] and len(names) > 4
    assert {id(p) for p in layers[-1]} == {id(p) for p in encoder.lstm.parameters()}
    assert {id(p) for layer in layers for p in layer} == {id(p) for p in encoder.parameters()}
    assert len(layers) == len(encoder_layers(encoder.body)) + 1
    last_of_body = list(encoder.body.parameters())[-1]
    assert any(p is last_of_body for p in layers[-2])


def test_gradients_in_eval_mode_reach_every_weight():
    "Importance weights are gradients in eval mode"
    model = make()
    nn.functional.cross_entropy(model(torch.randn(2, 4, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model[0].lstm.parameters())


def test_a_saved_model_is_made_again(tmp_path):
    model, x = make(), torch.randn(1, 3, 3, 32, 32)
    again = from_pretrained(save_pretrained(model, tmp_path/'m')).eval()
    with torch.no_grad(): assert torch.equal(again(x), model(x))


@pytest.mark.parametrize('name, kwargs, words', [
    ('lrcn:no_such_net', {}, 'unknown model'), ('lrcn:test_resnet', dict(hidden=0), 'at least 1, not 0'),
    ('lrcn:test_resnet', dict(depth=3), 'does not take depth=3')])
def test_other_settings_are_refused(name, kwargs, words):
    with pytest.raises(InputError, match=words) as e: create_encoder(name, **kwargs)
    assert '\n' not in str(e.value)
