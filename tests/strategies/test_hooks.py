"What a strategy records is what the method needs: the input as the encoder got it, an output with a graph."
import pytest
import torch
from helpers import data, learner, model
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdfast.errors import InputError
from sdfast.strategies import BSS, PSKD, R3F, EMATeacher, FeatureMaps, FixedTeacher, LinearProbe, LwF, SelfDistill


class Shifts(nn.Module):
    "An encoder that changes its input in place"
    def __init__(self, change):
        super().__init__()
        self.change, self.flat, self.out = change, nn.Flatten(), nn.Linear(36, 6)

    def forward(self, x):
        x = self.change(x)
        return self.out(self.flat(x))


CHANGES = dict(subtract=lambda x: x.sub_(.5), relu=nn.ReLU(inplace=True), index=lambda x: x.index_fill_(2, INDEX, 0.),
               view=lambda x: x.flatten(1).clamp_(0).view_as(x))
INDEX = torch.tensor([0])


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('make', [lambda: SelfDistill(1.), lambda: FixedTeacher(1., layers=['out']),
                                  lambda: LwF(1., nn.Linear(6, 2)), lambda: R3F(1.), lambda: PSKD(.5)])
def test_an_input_changed_in_place_is_refused(change, make):
    net = nn.Sequential(Shifts(CHANGES[change]), nn.Linear(6, 3))
    with pytest.raises(InputError, match='changes its input in place.*inplace=False'): learner(make(), net=net).fit(2)
    with pytest.raises(InputError, match='changes its input in place'):
        penalty = make().attach(net.train(), epochs=2)
        for _ in range(2):
            penalty.start_epoch()
            net(torch.randn(4, 1, 6, 6))
            penalty.loss(torch.zeros(4).long())


def test_in_place_operations_elsewhere_are_fine():
    net = nn.Sequential(Shifts(lambda x: nn.functional.relu_(x*1)), nn.Linear(6, 3))
    learner(SelfDistill(1.), net=net).fit(1)
    learner(BSS(1.), net=nn.Sequential(Shifts(nn.ReLU(inplace=True)), nn.Linear(6, 3))).fit(1)  # has no second pass


@pytest.mark.parametrize('make', [lambda: SelfDistill(1.), lambda: BSS(1.), lambda: EMATeacher(1.)])
def test_features_changed_in_place_by_the_head_are_refused(make):
    net = model()
    net[1] = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    with pytest.raises(InputError, match="encoder's output in place"): learner(make(), net=net).fit(1)


class Checkpointed(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a = nn.Sequential(nn.Flatten(), nn.Linear(36, 8))
        self.b, self.c, self.run = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 6), run

    def forward(self, x): return self.c(self.run(self.b, self.a(x)))


def reentrant(f, x): return checkpoint(f, x, use_reentrant=True)
def modern(f, x): return checkpoint(f, x, use_reentrant=False)
def direct(f, x): return f(x)
def without_graph(f, x):
    with torch.no_grad(): return f(x)


@pytest.mark.parametrize('run,layer', [(reentrant, 'b.0'), (without_graph, 'b'), (without_graph, 'b.1')])
@pytest.mark.parametrize('make', [lambda layers: FixedTeacher(1., layers=layers), lambda n: FeatureMaps(1., n)])
def test_a_layer_without_a_graph_is_refused(run, layer, make):
    net = nn.Sequential(Checkpointed(run), nn.Linear(6, 3))
    with pytest.raises(InputError, match=f'layer {layer!r} .*use_reentrant=False'):
        learner(make([layer]), net=net).fit(1)


def test_an_encoder_without_a_graph_is_refused():
    class Detached(Checkpointed):
        def forward(self, x): return super().forward(x).detach()
    with pytest.raises(InputError, match='the encoder returns its output without a graph'):
        learner(SelfDistill(1.), net=nn.Sequential(Detached(direct), nn.Linear(6, 3))).fit(1)


def test_layers_that_are_meant_not_to_train_are_no_fault():
    net = nn.Sequential(Checkpointed(direct), nn.Linear(6, 3))
    net[0].a.requires_grad_(False)
    learner(FixedTeacher(1., layers=['a', 'b', 'c']), net=net).fit(1)
    learner([LinearProbe(), SelfDistill(1.)], net=nn.Sequential(Checkpointed(direct), nn.Linear(6, 3))).fit(1)


def test_checkpointing_changes_nothing_but_memory():
    def weights(run, layers):
        torch.manual_seed(0)
        net = nn.Sequential(Checkpointed(run), nn.Linear(6, 3))
        learner(FixedTeacher(5., layers=layers), net=net, dls=data()).fit(2)
        return net.state_dict()
    # what a reentrant checkpoint returns has a graph
    for run, layers in ((modern, ['b.0', 'c']), (reentrant, ['b.1', 'b', 'c'])):
        plain, saved = weights(direct, layers), weights(run, layers)
        for k in plain: torch.testing.assert_close(plain[k], saved[k])
