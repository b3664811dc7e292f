"Heads in checkpoints: of fastai, Lightning, torchvision, of sdfast's folders and studies, and none by mistake."
import pytest
import torch
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.models.heads import read_head
from sdfast.models.model_folder import save_pretrained
from sdfast.models.weights import save_weights


@pytest.fixture
def net():
    torch.manual_seed(0)
    return create_model('tiny', 5)


def same(head, net): return torch.equal(head.weight, net[1].weight) and torch.equal(head.bias, net[1].bias)


def renamed(net, encoder, head):
    state = {f'{encoder}{k}':v for k, v in net[0].state_dict().items()}
    return state | {f'{head}{k}':v for k, v in net[1].state_dict().items()}


@pytest.mark.parametrize('content', [
    lambda net: net.state_dict(),
    lambda net: dict(model=net.state_dict(), opt=dict(state=[torch.zeros(2)])),  # fastai's learn.save
    lambda net: dict(state_dict=renamed(net, 'encoder.', 'head.'), epoch=3),  # Lightning
    lambda net: renamed(net, '', 'fc.'),  # torchvision
    lambda net: renamed(net, 'module.', 'module.classifier.'),
], ids=['plain', 'fastai', 'lightning', 'torchvision', 'ddp'])
def test_heads_by_their_usual_names(net, content, tmp_path):
    torch.save(content(net), tmp_path/'a.pth')
    assert same(read_head(tmp_path/'a.pth', net[0]), net)
    assert same(read_head(tmp_path/'a.pth', net[0], 5), net)
    assert read_head(tmp_path/'a.pth', net[0], 4) is None


def test_heads_in_folders(net, tmp_path):
    save_pretrained(net, tmp_path/'ours')
    assert same(read_head(tmp_path/'ours', net[0]), net)
    (tmp_path/'study').mkdir()
    save_weights(net[0], tmp_path/'study'/'encoder.safetensors')
    assert read_head(tmp_path/'study'/'encoder.safetensors', net[0]) is None
    save_weights(net[1], tmp_path/'study'/'head.safetensors')
    assert same(read_head(tmp_path/'study'/'encoder.safetensors', net[0], 5), net)


def test_what_is_no_head(net, tmp_path):
    "Other shapes, other names, the encoder's own layers, and two heads that differ"
    n, state = net[0].num_features, net[0].state_dict()
    own = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    own.num_features = 4
    torch.save(own.state_dict(), tmp_path/'own.pth')
    assert read_head(tmp_path/'own.pth', own, 4) is None
    for extra in ({'fc.weight':torch.zeros(5, n + 1)}, {'proj.weight':torch.zeros(5, n)},
                  {'fc.weight':torch.zeros(1, n)},
                  {'a.fc.weight':torch.zeros(5, n), 'b.fc.weight':torch.ones(5, n)}):
        torch.save(state | extra, tmp_path/'a.pth')
        assert read_head(tmp_path/'a.pth', net[0]) is None
    torch.save(state | {'fc.weight':torch.ones(5, n)}, tmp_path/'a.pth')
    assert read_head(tmp_path/'a.pth', net[0]).bias.tolist() == [0.]*5


def test_a_head_that_is_not_finite(net, tmp_path):
    net[1].weight.data[0, 0] = float('nan')
    torch.save(net.state_dict(), tmp_path/'a.pth')
    with pytest.raises(InputError, match='not finite|finite'): read_head(tmp_path/'a.pth', net[0])
