"Fixtures of the tests of measures: a source model, a tuned encoder, a pretext loss."
import copy

import pytest
import torch
from helpers import model


@pytest.fixture
def source():
    "A model, and train and test batches of a source task of 3 separable classes of images"
    torch.manual_seed(0)
    x, y = torch.randn(90, 1, 6, 6), torch.arange(90) % 3
    for c in range(3): x[y == c, 0, 2*c] += 2
    def batches(start, end): return [(x[i:i + 15], y[i:i + 15]) for i in range(start, end, 15)]
    return model(), batches(0, 60), batches(60, 90)


@pytest.fixture
def tuned():
    "A function from a model to a copy of its encoder with other weights and other statistics"
    def tune(net, by=.1):
        torch.manual_seed(3)
        encoder = copy.deepcopy(net[0])
        with torch.no_grad():
            for p in encoder.parameters(): p.add_(by*torch.randn_like(p))
            for n, b in encoder.named_buffers():
                if n.endswith('running_mean'): b.add_(.3)
        return encoder
    return tune


@pytest.fixture
def pretext():
    "A loss of an encoder"
    return lambda encoder: float(sum(p.detach().abs().sum() for p in encoder.parameters()))
