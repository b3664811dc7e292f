"Outputs of an encoder for all clips: labels or none, cached by content, layers of all kinds of encoders."

import pytest
import torch
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import reading as reading_module
from sdfast.metrics.retention import Retention
from sdfast.models.features import encode, extract
from sdfast.models.surgery import block_names


@pytest.fixture
def encoded(monkeypatch):
    "A list that grows with each batch that passes an encoder"
    calls, inside = [], reading_module.outputs_of
    monkeypatch.setattr(reading_module, 'outputs_of', lambda *a: calls.append(1) or inside(*a))
    return calls


def test_references_are_cached_by_content(source, tuned, tmp_path, encoded):
    net, train, test = source
    def build(net, test=test):
        before = len(encoded)
        return Retention(net, train, test, cache=tmp_path), len(encoded) - before
    first, batches = build(net)
    assert batches == 6  # four of train, two of test

    again, batches = build(net)
    assert batches == 0
    assert again.reference == first.reference
    assert set(again.change(net[0]).values()) == {0.}

    _, batches = build(net, [(x + (i == 1), y) for i, (x, y) in enumerate(test)])
    assert batches == 1  # one batch is new

    other = nn.Sequential(tuned(net), net[1])
    third, batches = build(other)
    assert batches == 6
    assert third.reference.source_acc == Retention(other, train, test).reference.source_acc


def test_damaged_files_are_recomputed(source, tmp_path, encoded):
    net, train, test = source
    first = Retention(net, train, test, cache=tmp_path)
    for file in tmp_path.rglob('*.safetensors'): file.write_bytes(file.read_bytes()[:-9])  # cut off
    before = len(encoded)
    with pytest.warns(UserWarning, match='recomputed'): again = Retention(net, train, test, cache=tmp_path)
    assert len(encoded) - before == 6
    assert again.reference == first.reference
    assert not list(tmp_path.rglob('*.tmp'))


def test_layers_of_all_kinds_of_encoders():
    "Lists of blocks, channels last, tuples; a layer that is not called is an error"
    class Swin(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(1, 4, 1)
            self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)])
            self.spare, self.last = nn.Linear(2, 2), nn.GRU(4, 5, batch_first=True)
        def forward(self, x):
            m = self.embed(x).permute(0, 2, 3, 1)
            for b in self.blocks: m = b(m)
            return self.last(m.flatten(1, 2))[0].mean(1)
    torch.manual_seed(0)
    net, x = Swin(), torch.rand(3, 1, 6, 7)
    names = block_names(net)
    assert names == ['embed', 'blocks.0', 'blocks.1', 'spare', 'last']
    with torch.no_grad():
        maps = encode(net, x, ['embed', 'blocks.0', 'last'])[1]
        m = net.blocks[0](net.embed(x).permute(0, 2, 3, 1))
        torch.testing.assert_close(maps['blocks.0'], m.mean((1, 2)))
        torch.testing.assert_close(maps['embed'], net.embed(x).mean((2, 3)))
        assert maps['last'].shape == (3, 5)
        with pytest.raises(InputError, match="'spare' was not called"): encode(net, x, names)


def test_frames_tokens_and_clips_are_averaged_in_layers():
    "Layers that see frames one by one, tokens, and several clips of a video"
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 5)
        def forward(self, x):
            b, t = x.shape[:2]
            m = self.conv(x.flatten(0, 1)).flatten(2).transpose(1, 2)
            return self.out(self.mix(m).mean(1)).unflatten(0, (b, t)).mean(1)
    torch.manual_seed(0)
    net, x = Frames(), torch.rand(2, 3, 4, 3, 5, 5)  # two videos of three clips of four frames
    with torch.no_grad():
        f, maps = encode(net, x, ['conv', 'mix', 'out'])
        want = net.conv(x.flatten(0, 2))
        torch.testing.assert_close(maps['conv'], want.mean((2, 3)).unflatten(0, (2, 12)).mean(1))
        tokens = net.mix(want.flatten(2).transpose(1, 2))
        torch.testing.assert_close(maps['mix'], tokens.mean(1).unflatten(0, (2, 12)).mean(1))
        torch.testing.assert_close(f, maps['out'])
    assert not net.conv._forward_hooks


def test_extract_averages_clips_of_a_video():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2*3*4*4, 5))
    x, y = torch.rand(3, 2, 2, 3, 4, 4), torch.arange(3)
    f, labels = extract(net, [(x, y)])
    with torch.no_grad(): torch.testing.assert_close(f, torch.stack([net(x[:, i]) for i in range(2)]).mean(0))
    assert torch.equal(labels, y)
