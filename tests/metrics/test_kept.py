"What is left of the source's accuracy, against the formula."
import copy

import pytest
import torch
from helpers import learner, model, same, state
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.errors import InputError
from sdfast.metrics import KeptAccuracy
from sdfast.models.surgery import frozen_copy
from sdfast.strategies import Budget, SelfDistill


def fitted(net, train):
    "The source model after a few steps on the source"
    opt = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    for _ in range(20):
        for x, y in train:
            torch.nn.functional.cross_entropy(net(x), y).backward()
            opt.step()
            opt.zero_grad()
    return net.eval()


def right(encoder, head, batches):
    with torch.no_grad(): return sum((head(encoder(x)).argmax(1) == y).sum().item() for x, y in batches)


def test_by_the_old_head(source, tuned):
    net, train, valid = source
    net = fitted(net, train)
    valid = [(x, (y + (torch.arange(len(y)) % 5 == 0)) % 3) for x, y in valid]  # even the untouched encoder errs
    kept, encoder = KeptAccuracy(net, valid), tuned(net, .3).eval()
    assert kept(frozen_copy(net[0])) == 1.
    assert kept(frozen_copy(encoder)) == right(encoder, net[1], valid)/right(net[0], net[1], valid)
    assert kept(frozen_copy(encoder)) < 1


def test_by_the_old_head_with_recomputed_statistics(source, tuned):
    net, train, valid = source
    net = fitted(net, train)
    kept = KeptAccuracy(net, valid, train, 'old_head_bn')
    other = copy.deepcopy(net[0])
    other.bn.running_mean.add_(5.)  # only statistics differ, and they are recomputed
    assert kept(frozen_copy(other)) == 1.
    assert KeptAccuracy(net, valid)(frozen_copy(other)) < 1.
    assert other.bn.running_mean.mean() > 2


def test_by_a_new_probe(source, tuned):
    net, train, valid = source
    net = fitted(net, train)
    encoder = tuned(net, .5).eval()
    def probe(part):
        with torch.no_grad(): x, xt = (torch.cat([part(x) for x, _ in dl]).numpy() for dl in (train, valid))
        y, yt = (torch.cat([y for _, y in dl]).numpy() for dl in (train, valid))
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=.1)).fit(x, y).score(xt, yt)
    valid = [(x, (y + (torch.arange(len(y)) % 5 == 0)) % 3) for x, y in valid]
    kept = KeptAccuracy(net, valid, train, 'probe')
    assert kept(frozen_copy(encoder)) == pytest.approx(probe(encoder)/probe(net[0]))


def test_a_budget_by_it_holds_a_floor_that_plain_fine_tuning_breaks(source):
    net, train, valid = source
    net = fitted(net, train)
    def fit(highest):
        start = copy.deepcopy(net)
        budget = Budget(.9, KeptAccuracy(net, valid), every=1, highest=highest, patience=1000)
        learn = learner(SelfDistill(highest, retain=budget), net=start, lr=.02)
        learn.fit(6)
        return learn.self_distill.kept_history[-1]['kept']
    assert fit(1e-6) < .85
    assert fit(10.) >= .85


def test_measuring_changes_nothing(source):
    net, train, valid = source
    net = fitted(net, train).train()
    before, random_state = state(net), torch.get_rng_state()
    KeptAccuracy(net, valid, train, 'old_head_bn')(frozen_copy(net[0]))
    assert same(before, state(net))
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize('arguments,why', [
    (dict(by='head'), 'by of KeptAccuracy must be one of old_head, old_head_bn, probe'),
    (dict(by='probe'), 'needs train_dl'),
    (dict(encoder='0'), 'needs the head of the source task'),
])
def test_what_it_refuses(source, arguments, why):
    net, _, valid = source
    with pytest.raises(InputError, match=why) as e: KeptAccuracy(net, valid, **arguments)
    assert '\n' not in str(e.value)


def test_clips_without_labels_and_an_encoder_that_knows_nothing(source):
    net, train, valid = source
    with pytest.raises(InputError, match='no labels'): KeptAccuracy(net, [x for x, _ in valid])
    with pytest.warns(UserWarning, match='at chance'): KeptAccuracy(model(1), valid)
