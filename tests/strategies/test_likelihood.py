"Fisher information of other outputs than a softmax, against closed forms."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import empirical_fisher, fisher_information, mas_importance


def net_and_samples(outputs, n=40, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, outputs)), torch.randn(n, 5)


def of_bias(net, vectors):
    "Mean over samples of the squared gradient of the encoder's bias, for vectors `(B, C)` of the outputs"
    return (vectors@net[1].weight.detach()).square().mean(0)


def hot(x, n): return (x[:, :n] > .3).float()


@pytest.mark.parametrize('n', [1, 3])
def test_fisher_of_independent_logits(n):
    net, x = net_and_samples(n)
    y, p = hot(x, n), net(x).sigmoid().detach()
    empirical = empirical_fisher(net, [(x[:16], y[:16]), (x[16:], y[16:])])
    torch.testing.assert_close(empirical.diag['bias'], of_bias(net, p - y))
    one_by_one = fisher_information(
        net, [(x, y)], loss=lambda m, x, y: F.binary_cross_entropy_with_logits(m(x), y, reduction='sum'))
    torch.testing.assert_close(empirical.diag['weight'], one_by_one.diag['weight'])
    exact = fisher_information(net, [(x, y)])
    each = [of_bias(net, F.one_hot(torch.full((40,), c), n)*(p*(1 - p)).sqrt()) for c in range(n)]
    torch.testing.assert_close(exact.diag['bias'], sum(each))
    kind = 'multi-label' if n > 1 else 'binary'
    assert torch.equal(fisher_information(net, [x], kind=kind).diag['bias'], exact.diag['bias'])
    sampled = fisher_information(net, [x.repeat(200, 1)], labels='sample', kind=kind)
    torch.testing.assert_close(sampled.diag['bias'], exact.diag['bias'], rtol=.1, atol=0)


@pytest.mark.parametrize('n', [1, 3])
def test_fisher_of_a_regression(n):
    "Of a normal distribution with variance 1"
    net, x = net_and_samples(n)
    y = x[:, :n]*2 - 1
    got = empirical_fisher(net, [(x, y)])
    torch.testing.assert_close(got.diag['bias'], of_bias(net, net(x).detach() - y))
    half = fisher_information(net, [(x, y)], loss=lambda m, x, y: .5*F.mse_loss(m(x), y, reduction='sum'))
    torch.testing.assert_close(got.diag['weight'], half.diag['weight'])
    exact = fisher_information(net, [x], kind='regression')
    want = sum(of_bias(net, F.one_hot(torch.full((40,), c), n).float()) for c in range(n))
    torch.testing.assert_close(exact.diag['bias'], want)
    sampled = fisher_information(net, [x.repeat(200, 1)], labels='sample', kind='regression')
    torch.testing.assert_close(sampled.diag['bias'], want, rtol=.1, atol=0)


def test_labels_as_a_column_and_as_probabilities():
    net, x = net_and_samples(3)
    y = torch.randint(0, 3, (40,))
    want = empirical_fisher(net, [(x, y)]).diag
    for labels in (y[:, None], y.int(), F.one_hot(y, 3).float(), F.one_hot(y, 3)):
        for k, v in empirical_fisher(net, [(x, labels)]).diag.items(): torch.testing.assert_close(v, want[k])
    other = fisher_information(net, [(x, torch.arange(40))])  # 'exact' does not use labels, which may be another task's
    assert torch.equal(other.diag['bias'], fisher_information(net, [x]).diag['bias'])


@pytest.mark.parametrize('message,n,y', [
    ('label 3 is not one of the 3 classes', 3, torch.arange(1, 4).repeat(10)),
    ('label -100 is not one', 3, torch.full((30,), -100)),
    ('can mean several things; pass kind=', 3, torch.rand(30, 3)),
    ('do not fit', 3, torch.rand(30)), ('other than 0 and 1', 1, torch.arange(30)),
    ('not for a target for each place', 3, torch.zeros(30, 3, 2))])
def test_labels_that_do_not_fit_are_refused(message, n, y):
    net, x = net_and_samples(n, 30)
    with pytest.raises(InputError, match=message): empirical_fisher(net, [(x, y)])


def test_what_is_not_known_is_refused():
    net, x = net_and_samples(1)
    with pytest.raises(InputError, match="the softmax of one output is always 1.*kind='binary'"):
        fisher_information(net, [x])
    with pytest.raises(InputError, match="kind must be one of classes, soft, .* not 'hot'"):
        fisher_information(net, [x], kind='hot')
    wide, x = net_and_samples(3)
    batches = [(x, F.one_hot(torch.arange(40) % 3, 3).float()), (x, hot(x, 3))]
    with pytest.raises(InputError, match='first targets looked like class probabilities.*kind='):
        empirical_fisher(wide, batches)
    assert empirical_fisher(wide, batches, kind='multi-label').mean > 0
    for take in (fisher_information, mas_importance):
        with pytest.raises(InputError, match='yields a dict with a, none of which is known as clips'):
            take(wide, [dict(a=x)])


def test_outputs_with_logits():
    class Returns(nn.Sequential):
        def forward(self, x): return dict(logits=super().forward(x))
    net, x = net_and_samples(3)
    for take in (fisher_information, mas_importance):
        assert torch.equal(take(Returns(*net), [x]).diag['bias'], take(net, [x]).diag['bias'])


def test_batch_norm_without_running_statistics_is_refused():
    "Its outputs for one sample depend on the others of the batch, in eval mode too"
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    net = nn.Sequential(encoder, nn.Linear(64, 3))
    for take in (fisher_information, empirical_fisher, mas_importance):
        with pytest.raises(InputError, match="batch norm '0.1' has no running statistics"):
            take(net, [(torch.randn(4, 1, 6, 6), torch.zeros(4).long())])
