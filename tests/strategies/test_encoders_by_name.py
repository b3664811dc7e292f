"Strategies, `Retention` and `RetentionCurve` on video transformers and nets of libraries, as the committed table says."
import re
from pathlib import Path

import pytest
from pretraining import needs_opencv, needs_pytorchvideo
from scripts import ROOT, load_script

from sdfast.strategies import STRATEGIES

pytest.importorskip('transformers')
SCRIPT = load_script('encoders')
# one of each kind: features, blocks, weights with importance, old head, rates by depth
FEW = ('self_distill', 'ldifs', 'ewc', 'lwf', 'layer_decay')
FAMILIES = ('VideoMAEForVideoClassification', 'VivitModel', 'TimesformerForVideoClassification',
            'VJEPA2ForVideoClassification', 'timm:test_vit')
# of the nets in parts: output, blocks, weights, adapters in the layers, rates by depth
NETS, SOME = (('slowfast_r50', 'lrcn:test_resnet', 'two_stream:test_resnet'),
              ('self_distill', 'ldifs', 'l2sp', 'lora', 'layer_decay'))


def needs(encoder):
    "Skip the test where an optional library is missing"
    if encoder.startswith(('slowfast', 'x3d')): needs_pytorchvideo()
    if encoder.startswith('two_stream'): needs_opencv()


@pytest.fixture(scope='module')
def root(tmp_path_factory): return tmp_path_factory.mktemp('checkpoints')


@pytest.fixture(scope='module')
def committed():
    "Encoder -> strategy -> mark in experiments/results/encoders.md"
    lines = Path(ROOT/'experiments/results/encoders.md').read_text(encoding='utf-8').splitlines()
    rows = [re.split(r'\s*\|\s*', line.strip('| ')) for line in lines if line.startswith('|')]
    heads = [h.strip('`') for h in rows[0]]
    return {e:{row[0]:row[i] for row in rows[2:]} for i, e in enumerate(heads) if i}


def test_the_committed_table_is_whole(committed):
    assert list(committed) == list(SCRIPT.ENCODERS)
    for marks in committed.values(): assert list(marks) == [*STRATEGIES, 'retention']


@pytest.mark.parametrize('encoder', FAMILIES)
def test_a_few_strategies(encoder, root, committed):
    row = SCRIPT.make_row(encoder, root, FEW)
    assert {s:mark for s, (mark, _) in row.items()} == {s:committed[encoder][s] for s in row}
    assert {mark for mark, _ in row.values()} == {'works'}


@pytest.mark.parametrize('encoder', NETS)
def test_some_strategies_on_nets_in_parts(encoder, root, committed):
    needs(encoder)
    pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[lora]'")
    row = SCRIPT.make_row(encoder, root, SOME)
    assert {s:mark for s, (mark, _) in row.items()} == {s:committed[encoder][s] for s in row}
    assert {mark for mark, _ in row.values()} == {'works'}


@pytest.mark.nightly
@pytest.mark.parametrize('encoder', SCRIPT.ENCODERS)
def test_every_strategy(encoder, root, committed):
    needs(encoder)
    row = SCRIPT.make_row(encoder, root, list(STRATEGIES))
    assert {s:mark for s, (mark, _) in row.items()} == committed[encoder]
