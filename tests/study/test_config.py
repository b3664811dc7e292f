"Settings: declared once, the same from a command line, a study file and Python; keys hash what differs from the defaults."
import shlex
from dataclasses import dataclass, fields, replace

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sdfast.errors import InputError
from sdfast.runtime.options import format_options, parse_options
from sdfast.study import settings as settings_module
from sdfast.study.config import GROUPS, Run, Study, changed_fields, hash_fields, setting
from sdfast.study.settings import command_line, make_settings, parse_command_line, read_study_file, recorded_command, write_study_file

COMMANDS = ('compare', 'sequence')
QUICKLY = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- options as text ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text,value', [
    ('3', 3), ('-3', -3), ('.9', .9), ('1.', 1.), ('1e-3', 1e-3), ('-2.5E2', -250.), ('0', 0),
    ('true', True), ('True', True), ('false', False), ('False', False), ('none', None), ('None', None),
    ('[1,2]', [1, 2]), ('["a","b"]', ['a', 'b']), ('[a, b]', ['a', 'b']), ('[]', []), ('[.4,[1,true],none]', [.4, [1, True], None]),
    ('same', 'same'), ('"a,b"', 'a,b'), ("'[x'", '[x'), ('"1"', '1'), (r'"a \"b\" \\ \d"', r'a "b" \ \d'), ("it's", "it's"), ('', ''),
    ('/a/b c.pth', '/a/b c.pth'), ('007', '007'), ('node[1-3,5]', 'node[1-3,5]'), ('a=b', 'a=b')])
def test_a_value(text, value):
    options = parse_options(f'first=1,x={text},last=2')
    assert options == dict(first=1, x=value, last=2)
    assert type(options['x']) is type(value)


def test_blanks_and_empty_parts_do_not_count():
    assert parse_options(' a = 1 , ,b=x y,') == dict(a=1, b='x y')
    assert parse_options('') == {}


@pytest.mark.parametrize('text,error', [
    ('width', "--model-args must be name=value,..., not 'width'"), ('1=2', 'name=value'), ('a=1,a=2', 'name a twice'),
    ('a=[1,2', 'brackets do not match'), ('a=1]', 'brackets do not match'), ('a="x', 'quotes do not match'), ('a="x"y', 'quotes do not match')])
def test_text_that_is_no_options(text, error):
    with pytest.raises(InputError) as e: parse_options(text, '--model-args')
    assert error in str(e.value) and '\n' not in str(e.value)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                      lambda v: st.lists(v, max_size=3), max_leaves=5)
NAMES = st.from_regex(r'[a-z_][a-z0-9_]{0,6}', fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_options_survive_text(options): assert parse_options(format_options(options)) == options


def test_options_of_a_run():
    run = Run(model_args='width=8,flag=False', strategy_args='decay=.9,layers=["a","b"]')
    assert run.options() == dict(width=8, flag=False)
    assert run.options('strategy_args') == dict(decay=.9, layers=['a', 'b'])
    with pytest.raises(InputError, match='strategy_args must be name=value'): Run(strategy_args='x').options('strategy_args')


# --- the schema ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('command', COMMANDS)
def test_every_setting_has_help_and_a_group(command):
    for name, o in settings_module.all_options(command).items():
        assert o.help and o.help[0].isalnum() and not o.help.endswith('.'), name
        assert o.setting.group in GROUPS, name
        assert o.read(o.default) == o.default, name


def test_names_are_those_of_one_setting():
    names = [f.metadata['setting'].option or f.name for f in [*fields(Run), *fields(Study)] if f.metadata['setting'].group]
    assert len(names) == len(set(names))


def test_what_users_cannot_set():
    hidden = {f.name for f in fields(Run) if not f.metadata['setting'].group}
    assert hidden == {'data', 'strategy', 'strategy_args', 'lam', 'seed', 'final', 'processes', 'source_valid'}
    for name in ('lam', 'final', 'processes', 'with_barrier'):
        with pytest.raises(InputError, match='no setting'): make_settings('compare', **{name: 1})


def test_defaults():
    compare, sequence, run = make_settings('compare'), make_settings('sequence'), Run()
    for name in ('task', 'epochs', 'lr', 'bs', 'wd', 'schedule', 'frames', 'valid_frac', 'wrap'):
        assert getattr(compare, name) == getattr(run, name), name
    for name in ('size', 'source_epochs', 'source_bs', 'jobs'): assert getattr(compare, name) is None, name
    assert (compare.epochs, compare.seeds, compare.out) == (12, 6, 'runs/compare')
    assert (sequence.epochs, sequence.seeds, sequence.out, sequence.jobs) == (8, 6, 'runs/sequence', 1)
    assert compare.strategies == 'self_distill,fixed_teacher,ema_teacher,l2sp,ewc'
    assert sequence.strategies == 'self_distill,fixed_teacher,l2sp,ewc,linear_probe'


def test_help_has_every_option_by_group(capsys):
    with pytest.raises(SystemExit) as e: parse_command_line('compare', ['--help'], 'About it')
    assert e.value.code == 0
    out = capsys.readouterr().out
    assert 'About it' in out
    for o in settings_module.all_options('compare').values(): assert (f'  {o.flag} ' in out or f'  {o.flag},' in out) == o.given, o.flag
    at = [out.index(f'\n{group}:') for group in GROUPS]
    assert at == sorted(at)


def test_every_option_of_one_command_is_refused_by_the_other():
    for command, other in (COMMANDS, COMMANDS[::-1]):
        mine, theirs = settings_module.all_options(command), settings_module.all_options(other)
        for name in mine:
            if mine[name].given and not theirs[name].given:
                with pytest.raises(InputError, match=f'{other}.py has no setting'): make_settings(other, **{name: mine[name].default})


@pytest.mark.parametrize('words,error', [
    ('--strategy ewc', 'compare.py has no option --strategy; did you mean --strategies?'),
    ('--epoch 3', 'did you mean --epochs?'), ('--tasks x', 'did you mean --task?'), ('--zzz', 'no option --zzz'), ('x', "unexpected 'x'"),
    ('--epochs', 'expected one argument'), ('--epochs 0', '--epochs must be at least 1, not 0'),
    ('--epochs x', "--epochs must be a whole number, not 'x'"), ('--epochs 1.5', "--epochs must be a whole number, not '1.5'"),
    ('--lr x', "--lr must be a number, not 'x'"), ('--lr 0', '--lr must be positive, not 0.0'), ('--lr nan', '--lr must be finite'),
    ('--source-lr inf', '--source-lr must be finite'), ('--wd -1', '--wd must be at least 0'), ('--area 2', '--area must be at most 1'),
    ('--valid-frac 1', '--valid-frac must be less than 1'), ('--size 7', '--size must be at least 8, not 7'),
    ('--schedule x', "--schedule must be one of cosine, epoch_cosine, steps, not 'x'"),
    ('--rule test', "--rule must be accuracy or equal_learning, not 'test': test is read once, at the end, and never to choose"),
    ('--select paper', "--select must be last or valid, not 'paper'"), ('--flip=1', '--flip')])
def test_a_command_line_that_cannot_be(words, error):
    with pytest.raises(InputError) as e: parse_command_line('compare', words.split())
    assert error in str(e.value) and '\n' not in str(e.value)


# --- the same in every form ---------------------------------------------------------------------------------------------

def values(option):
    "Values that a setting can have"
    s = option.setting
    if s.choices: return st.sampled_from(s.choices)
    if option.type is bool: return st.booleans()
    if option.type is int: return st.integers(min_value=int(s.minimum), max_value=10**6)
    if option.type is float:
        return st.floats(min_value=s.minimum if s.above is None else s.above, max_value=s.below if s.maximum is None else s.maximum,
                         exclude_min=s.above is not None, exclude_max=s.below is not None, allow_infinity=False, allow_nan=False)
    return st.text(st.characters(blacklist_categories=['Cs', 'Cc']))


@st.composite
def some_settings(draw):
    command = draw(st.sampled_from(COMMANDS))
    options = [o for o in settings_module.all_options(command).values() if o.given]
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
    s = read_study_file(file)
    assert s == make_settings('compare', strategies='ewc,l2sp', lams='ewc=0.1,1;l2sp=3', strategy_args='ewc:implicit=true;l2sp:head_lam=.5',
                              model_args='width=8,layers=[a,b]', others='moving_digits,part=motion;moving_digits,part=digit', lr=1e-3,
                              epochs=4, flip=True)
    assert isinstance(s.lr, float)


def test_options_override_a_study_file(tmp_path):
    file = write(tmp_path/'a.yaml', 'epochs: 4\nflip: true\nlr: 1\nsize: 64\n')
    s = parse_command_line('compare', ['--config', str(file), '--epochs', '3', '--no-flip'])
    assert (s.epochs, s.flip, s.lr, s.size) == (3, False, 1., 64)


@pytest.mark.parametrize('text,error', [
    ('strategy: ewc', "compare.py has no setting 'strategy'; did you mean strategies?"), ('epochs: 0', '--epochs must be at least 1, not 0'),
    ('epochs: x', '--epochs must be a whole number'), ('epochs: 1.5', '--epochs must be a whole number, not 1.5'),
    ('epochs: true', '--epochs must be a whole number, not True'), ('epochs: [1]', '--epochs must be a whole number, not [1]'),
    ('flip: 1', '--flip must be true or false'), ('task: [a]', '--task must be text'),
    ('command: sequence', 'is for sequence.py, not for compare.py'), ('command: train', 'must name its command: compare or sequence'),
    ('- a', 'a line "name: value"'), ('x', 'a line "name: value"'), ('a: [', 'is not YAML'), ('1: 2', 'a line "name: value"')])
def test_a_study_file_that_cannot_be(tmp_path, text, error):
    file = write(tmp_path/'a.yaml', text + '\n')
    with pytest.raises(InputError) as e: parse_command_line('compare', ['--config', str(file)])
    assert error in str(e.value) and '\n' not in str(e.value)


def test_a_study_file_alone_names_its_command(tmp_path):
    with pytest.raises(InputError, match='must name its command'): read_study_file(write(tmp_path/'a.yaml', 'epochs: 4\n'))
    assert read_study_file(write(tmp_path/'b.yaml', 'command: sequence\n')) == make_settings('sequence')


def test_what_a_study_file_holds(tmp_path):
    write_study_file(make_settings('sequence', epochs=8, lr=.5, quick=True), tmp_path)
    assert yaml.safe_load((tmp_path/'study.yaml').read_text()) == dict(command='sequence', lr=.5, quick=True)


def test_a_command_that_was_recorded_without_a_study_file(tmp_path):
    assert recorded_command(tmp_path) == ''
    (tmp_path/'plan.json').write_text('{"command": "python x.py"}')
    assert recorded_command(tmp_path) == 'python x.py'


# --- keys ---------------------------------------------------------------------------------------------------------------

def test_keys_hash_what_differs_from_the_defaults():
    run = Run(epochs=3, lam=1, size=24, final=True)
    assert changed_fields(run) == dict(lam=1., epochs=3, size=24, final=True)
    assert run.key == hash_fields(dict(final=True, size=24, lam=1., epochs=3))
    assert run.source_key == hash_fields(dict(size=24))
    assert Run().key == hash_fields({})


def test_a_new_setting_changes_no_key():
    @dataclass(frozen=True)
    class Later(Run):
        new: int = setting(0, 'training')
    run = Run(epochs=3, size=24)
    later = Later(epochs=3, size=24)
    assert (later.key, later.source_key) == (run.key, run.source_key)
    assert replace(later, new=1).key != run.key


def test_equal_runs_have_equal_keys(): assert Run(lam=1) == Run(lam=1.) and Run(lam=1).key == Run(lam=1.).key


# fields that do not decide the model before fine-tuning
TARGET_FIELDS = ('strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'schedule', 'wd', 'bs', 'valid_frac', 'select', 'patience',
                 'others', 'with_barrier', 'final', 'task')


def another(field, value):
    "Another value of a field"
    if field == 'select': return 'valid'
    if isinstance(value, bool): return not value
    return value + 1 if isinstance(value, (int, float)) else f'{value}x'


@pytest.mark.parametrize('field', [f.name for f in fields(Run)])
def test_a_key_is_of_all_fields(base, field):
    other = replace(base, **{field: another(field, getattr(base, field))})
    assert len(base.key) == 12
    assert other.key != base.key
    # one source model for all strategies and seeds
    assert (other.source_key == base.source_key) == (field in TARGET_FIELDS)
