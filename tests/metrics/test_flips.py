"Which clips flip, and in how many runs: counted clip by clip."
import pytest
import torch

from sdfast.errors import InputError
from sdfast.metrics import count_flips


def test_counts_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    before, after = torch.rand(40, generator=g) < .6, torch.rand(5, 40, generator=g) < .5
    table = count_flips(before, after)
    assert table.runs.tolist() == [5]*40 and table.before.tolist() == before.tolist()
    for i, row in table.iterrows():
        runs = [bool(run[i]) for run in after]
        assert row.forgotten == (sum(not r for r in runs) if before[i] else 0)
        assert row.learned == (0 if before[i] else sum(runs))
    assert table.forgotten.sum() > 10 < table.learned.sum()


def test_nothing_flips_where_nothing_changed():
    before = torch.tensor([True, False, True])
    table = count_flips(before, before.expand(4, 3))
    assert not table[['forgotten', 'learned']].any(axis=None)
    none = count_flips(before, torch.zeros(0, 3, dtype=torch.bool))
    assert none.runs.tolist() == [0]*3 and not none.forgotten.any()


@pytest.mark.parametrize('before,after', [
    (torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)), (torch.ones(3), torch.ones(2, 3)),
    (torch.ones(3, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool))])
def test_other_shapes_are_refused(before, after):
    with pytest.raises(InputError, match='compares right and wrong'): count_flips(before, after)
