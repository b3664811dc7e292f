"Checkpoints in RSPNet's own layout: names and shapes as its code has them, and all of it read back."
import pytest
import torch
from helpers import same, state
from pretraining import tiny

from sdfast.errors import InputError
from sdfast.models.encoders import c3d, r2plus1d
from sdfast.models.weights import load_encoder
from sdfast.pretext.rspnet import RSPNet
from sdfast.pretext.rspnet_checkpoint import read_rspnet, save_rspnet

NAMES = {
    'c3d': ['conv1.weight', 'bn5b.running_var'],
    'r2plus1d-vcop': ['conv1.spatial_conv.weight', 'conv5.block1.downsampleconv.temporal_conv.weight',
                      'conv3.block1.downsamplebn.bias', 'bn1.weight'],
}


@pytest.mark.parametrize('make,arch,entries', [(c3d, 'c3d', 56), (r2plus1d, 'r2plus1d-vcop', 144)])
def test_round_trip(make, arch, entries, tmp_path):
    torch.manual_seed(1)
    m = RSPNet(queue=4)
    net = m.build(make())
    with torch.no_grad():
        for p in net.heads.keys.parameters(): p += 1
    path = tmp_path/'r.pth.tar'
    save_rspnet(m, path, arch, 3)

    file = torch.load(path, weights_only=True)
    model = file['model']
    assert file['arch'] == arch
    assert file['epoch'] == 3
    assert len(model) == 2*(entries + 2 + 4) + 2
    assert model['queue'].shape == (128, 4)
    assert model['queue_ptr'].shape == (1,)
    assert model['encoder_q.encoder.linear.weight'].shape == (1, 512)
    assert model['encoder_k.fc1.2.weight'].shape == (128, 512)
    assert model['encoder_q.fc2.2.bias'].shape == (128,)
    assert model.keys() >= {f'encoder_{net}.encoder.{name}' for name in NAMES[arch] for net in 'qk'}
    # what RSPNet's fine-tuning reads: names after encoder_q., without the heads
    read = [k.removeprefix('encoder_q.') for k in model if k.startswith('encoder_q.')]
    assert not [k for k in read if not k.startswith(('encoder.', 'fc1.2.', 'fc2.2.'))]

    assert same(state(load_encoder(make(), path)), state(net.encoder))
    again = read_rspnet(path, make())
    assert same(state(again.pretext_net), state(net))
    assert again.queue == 4
    with pytest.raises(InputError, match='not of this encoder'): read_rspnet(path, tiny())


def test_files_without_a_queue_are_refused(tmp_path):
    torch.save(dict(model={'encoder_q.encoder.conv1.weight': torch.zeros(1)}), tmp_path/'x.pth.tar')
    with pytest.raises(InputError, match='has no queue'): read_rspnet(tmp_path/'x.pth.tar', tiny())


def test_nothing_to_save_before_a_fit(tmp_path):
    with pytest.raises(InputError, match='fit first'): save_rspnet(RSPNet(), tmp_path/'x.pth.tar', 'c3d')
