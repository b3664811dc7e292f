"A small video net with all kinds of layers that adapters know, and a learner for it."
import torch
from fastai.data.core import DataLoaders, TfmdDL
from helpers import learner
from torch import nn


class Video(nn.Module):
    "Factored, pointwise and grouped convolutions over time and space"
    def __init__(self):
        super().__init__()
        self.space, self.bn = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(4)
        self.time = nn.Conv3d(4, 4, (3, 1, 1), (2, 1, 1), (1, 0, 0))
        self.point = nn.Conv3d(4, 4, 1)
        self.odd = nn.Conv3d(4, 4, (1, 1, 3), padding=(0, 0, 1))
        self.grouped, self.out = nn.Conv3d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 6)

    def forward(self, x):
        x = self.odd(self.point(self.time(self.bn(self.space(x)).relu()).relu()))
        return self.out(self.grouped(x).relu().mean((2, 3, 4)))


def video_learner(cbs, **kw):
    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 4, 6, 6), torch.randint(0, 3, (16,))
    dl = lambda: TfmdDL(list(zip(x, y)), bs=8, num_workers=0)
    return learner(cbs, dls=DataLoaders(dl(), dl(), device='cpu'), net=nn.Sequential(Video(), nn.Linear(6, 3)), **kw), x
