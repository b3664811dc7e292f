"Settings are the same from a command line, a study file and Python, and wrong ones are refused in one line."
import shlex

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sdfast.errors import InputError
from sdfast.study.config import GROUPS
from sdfast.study.settings import (
    all_options,
    command_line,
    make_settings,
    parse_command_line,
    read_study_file,
    recorded_command,
    write_study_file,
)

COMMANDS = ('compare', 'sequence')
QUICKLY = hypothesis_settings(max_examples=60, deadline=None,
                              suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(option):
    "Values that a setting can have"
    s = option.setting
    if s.choices: return st.sampled_from(s.choices)
    if option.type is bool: return st.booleans()
    if option.type is int: return st.integers(min_value=int(s.minimum), max_value=int(s.maximum))
    if option.type is float:
        low, high = (s.minimum if s.above is None else s.above), (s.maximum if s.below is None else s.below)
        return st.floats(low, high, exclude_min=s.above is not None, exclude_max=s.below is not None,
                         allow_infinity=False, allow_nan=False)
    return st.text(st.characters(exclude_categories=['Cs', 'Cc']))


@st.composite
def some_settings(draw):
    command = draw(st.sampled_from(COMMANDS))
    options = [o for o in all_options(command).values() if o.given and o.setting.recorded]
    chosen = draw(st.lists(st.sampled_from(options), unique_by=lambda o: o.name, max_size=8))
    return make_settings(command, **{o.name:draw(values(o)) for o in chosen})


@given(settings=some_settings())
@QUICKLY
def test_settings_survive_a_command_line(settings):
    python, script, *words = shlex.split(command_line(settings))
    assert (python, script) == ('python', f'experiments/{settings.command}.py')
    assert parse_command_line(settings.command, words) == settings


@given(settings=some_settings())
@QUICKLY
def test_settings_survive_a_study_file(settings, tmp_path):
    file = write_study_file(settings, tmp_path)
    assert file == tmp_path/'study.yaml'
    assert read_study_file(file) == settings
    assert recorded_command(tmp_path) == command_line(settings)


def write(path, text):
    path.write_text(text)
    return path


def test_a_study_file_by_hand(tmp_path):
    file = write(tmp_path/'a.yaml', """
# Which keeps most?
command: compare
strategies: [ewc, l2sp]
lams: {ewc: [.1, 1], l2sp: 3}
strategy_args: {ewc: {implicit: true}, l2sp: head_lam=.5}
model_args: {width: 8, layers: [a, b]}
others: ['moving_digits,part=motion', 'moving_digits,part=digit']
lr: 1e-3
epochs: 4
flip: true
size:
""")
    assert read_study_file(file) == make_settings(
        'compare', strategies='ewc,l2sp', lams='ewc=0.1,1;l2sp=3', model_args='width=8,layers=[a,b]', lr=1e-3, epochs=4,
        strategy_args='ewc:implicit=true;l2sp:head_lam=.5', others='moving_digits,part=motion;moving_digits,part=digit',
        flip=True)


def test_options_override_a_study_file(tmp_path):
    file = write(tmp_path/'a.yaml', 'epochs: 4\nflip: true\nlr: 1\nsize: 64\n')
    s = parse_command_line('compare', ['--config', str(file), '--epochs', '3', '--no-flip'])
    assert (s.epochs, s.flip, s.lr, s.size) == (3, False, 1., 64)


@pytest.mark.parametrize('text,error', [
    ('strategy: ewc', "compare.py has no setting 'strategy'; did you mean strategies?"),
    ('epochs: 0', '--epochs must be at least 1, not 0'),
    ('epochs: x', '--epochs must be a whole number'),
    ('epochs: 1.5', '--epochs must be a whole number, not 1.5'),
    ('epochs: true', '--epochs must be a whole number, not True'),
    ('epochs: [1]', '--epochs must be a whole number, not [1]'),
    ('flip: 1', '--flip must be true or false'),
    ('task: [a]', '--task must be text'),
    ('command: sequence', 'is for sequence.py, not for compare.py'),
    ('command: train', 'must name its command: compare or sequence'),
    ('- a', 'a line "name: value"'),
    ('x', 'a line "name: value"'),
    ('a: [', 'is not YAML'),
    ('1: 2', 'a line "name: value"'),
])
def test_a_study_file_that_cannot_be(tmp_path, text, error):
    file = write(tmp_path/'a.yaml', text + '\n')
    with pytest.raises(InputError) as e: parse_command_line('compare', ['--config', str(file)])
    assert error in str(e.value) and '\n' not in str(e.value)


def test_a_study_file_alone_names_its_command(tmp_path):
    without = write(tmp_path/'a.yaml', 'epochs: 4\n')
    with pytest.raises(InputError, match='must name its command'): read_study_file(without)
    assert read_study_file(write(tmp_path/'b.yaml', 'command: sequence\n')) == make_settings('sequence')


def test_what_a_study_file_holds(tmp_path):
    write_study_file(make_settings('sequence', epochs=8, lr=.5, quick=True), tmp_path)
    assert yaml.safe_load((tmp_path/'study.yaml').read_text()) == dict(command='sequence', lr=.5, quick=True)


def test_a_command_that_was_recorded_without_a_study_file(tmp_path):
    assert recorded_command(tmp_path) == ''
    (tmp_path/'plan.json').write_text('{"command": "python x.py"}')
    assert recorded_command(tmp_path) == 'python x.py'


def test_help_has_every_option_by_group(capsys):
    with pytest.raises(SystemExit) as e: parse_command_line('compare', ['--help-all'], 'About it')
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert 'About it' in out
    for o in all_options('compare').values():
        listed = f'  {o.flag} ' in out or f'  {o.flag},' in out
        assert listed == o.given, o.flag
    at = [out.index(f'\n{group}:') for group in GROUPS]
    assert at == sorted(at)


def test_every_option_of_one_command_is_refused_by_the_other():
    for command, other in (COMMANDS, COMMANDS[::-1]):
        for name, o in all_options(command).items():
            if not o.given or all_options(other)[name].given: continue
            given = {name: o.default}
            with pytest.raises(InputError, match=f'{other}.py has no setting'): make_settings(other, **given)


@pytest.mark.parametrize('words,error', [
    ('--strategy ewc', 'compare.py has no option --strategy; did you mean --strategies?'),
    ('--epoch 3', 'did you mean --epochs?'),
    ('--tasks x', 'did you mean --task?'),
    ('--zzz', 'no option --zzz'),
    ('x', "unexpected 'x'"),
    ('--epochs', 'expected one argument'),
    ('--epochs 0', '--epochs must be at least 1, not 0'),
    ('--epochs x', "--epochs must be a whole number, not 'x'"),
    ('--epochs 1.5', "--epochs must be a whole number, not '1.5'"),
    ('--lr x', "--lr must be a number, not 'x'"),
    ('--lr 0', '--lr must be positive, not 0.0'),
    ('--lr nan', '--lr must be finite'),
    ('--source-lr inf', '--source-lr must be finite'),
    ('--wd -1', '--wd must be at least 0'),
    ('--area 2', '--area must be at most 1'),
    ('--valid-frac 1', '--valid-frac must be less than 1'),
    ('--size 7', '--size must be at least 8, not 7'),
    ('--schedule x', "--schedule must be one of cosine, epoch_cosine, steps, not 'x'"),
    ('--rule test', 'accuracy or equal_learning'),
    ('--rule test', "not 'test': test is read once, at the end, and never to choose"),
    ('--select paper', "--select must be last or valid, not 'paper'"),
    ('--flip=1', '--flip'),
])
def test_a_command_line_that_cannot_be(words, error):
    with pytest.raises(InputError) as e: parse_command_line('compare', words.split())
    assert error in str(e.value) and '\n' not in str(e.value)
