"Distillation of feature maps and channel attention, against formulas written out by hand."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import data, learner, state
from strategy_helpers import check_deep, deep, taught

from sdfast.errors import InputError
from sdfast.strategies import DELTA, FeatureMaps, channel_attention, map_distance


@pytest.mark.parametrize('shape', [(5, 6), (5, 6, 4), (5, 6, 4, 3), (5, 6, 2, 4, 3)])
def test_map_distance_of_any_rank(shape):
    rng = np.random.default_rng(0)
    s, t, w = rng.normal(size=shape), rng.normal(size=shape), rng.dirichlet(np.ones(6))
    want = weighted = 0.
    for b in range(5):
        for c in range(6):
            d = np.mean((s[b, c] - t[b, c])**2)
            want, weighted = want + d/2/5, weighted + 6*w[c]*d/2/5
    got = [map_distance(torch.tensor(s), torch.tensor(t), v).item() for v in (None, torch.tensor(w))]
    # without weights each channel counts as if it had 1/C of the weight
    assert got == pytest.approx([want, weighted], rel=1e-5)
    assert map_distance(torch.tensor(s), torch.tensor(t), torch.full((6,), 1/6)).item() == pytest.approx(want, rel=1e-5)


def test_feature_maps_and_delta():
    start, w = deep(), {'body.one': torch.tensor([.7, .1, .1, .1]), 'body.two': torch.full((6,), 1/6)}
    def extra(weights):
        def f(net, x, y, feats, logits):
            total = 0.
            for s, t, name in zip(feats, taught(start[0], x), w):
                d = ((s - t)**2).mean((2, 3))  # (B, C)
                total = total + .5*(d*(weights[name]*d.shape[1] if weights else 1)).sum(1).mean()
            return .3*total
        return f
    check_deep(FeatureMaps(.3), extra(None))
    check_deep(DELTA(.3, w), extra(w))
    with pytest.raises(ValueError, match="4 weights for layer 'body.two', which has 6 channels"):
        learner(DELTA(1., {'body.two': torch.ones(4)/4}), net=deep()).fit(1)


def test_channel_attention_is_the_loss_without_the_channel():
    net, batches = deep(), [(x, y) for x, y in data().valid]
    before, modes = state(net), [m.training for m in net.modules()]
    w = channel_attention(net, batches)
    assert list(w) == ['body.one', 'body.two'] and all(v.sum().item() == pytest.approx(1) for v in w.values())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(net).values()))
    assert [m.training for m in net.modules()] == modes
    net.eval()
    growth = []
    with torch.no_grad():
        x, y = (torch.cat(t) for t in zip(*batches))
        for c in range(6):
            f = net[0].body.two(net[0].body.one(x)).clone()
            f[:, c] = 0
            growth.append((F.cross_entropy(net[1](net[0].body.pool(f)), y) - F.cross_entropy(net(x), y)).item())
    torch.testing.assert_close(w['body.two'], torch.tensor(growth).div(5).softmax(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match='no samples'): channel_attention(net, [])


def test_channel_attention_of_other_targets():
    net, batches = deep(), [(x, y) for x, y in data().valid]
    want = channel_attention(net, batches)
    for k, w in channel_attention(net, [(x, y[:, None]) for x, y in batches]).items(): assert torch.equal(w, want[k])
    own = channel_attention(net, batches, loss_func=F.cross_entropy)
    for k, w in own.items(): torch.testing.assert_close(w, want[k])
    hot = [(x, torch.stack([y > 0, y > 1, y == 0], 1).float()) for x, y in batches]
    with pytest.raises(InputError, match='not for multi-label targets: pass loss_func'): channel_attention(net, hot)
    given = channel_attention(net, hot, loss_func=F.binary_cross_entropy_with_logits)
    assert not torch.allclose(given['body.two'], want['body.two'])
    with pytest.raises(InputError, match='label 3 is not one of the 3 classes'):
        channel_attention(net, [(x, y + 1) for x, y in batches])
    with pytest.raises(InputError, match='mean over the batch'):
        channel_attention(net, batches, loss_func=torch.nn.CrossEntropyLoss(reduction='sum'))
