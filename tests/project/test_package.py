"The package that pip installs: its files, what its page in an index says, extras, and settings.ini, a copy of it."
import configparser
import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from sdfast.errors import InputError
from sdfast.runtime import launcher as launcher_module
from sdfast.runtime.launcher import Launcher
from sdfast.study.settings import make_settings
from sdfast.study.setup import default_jobs

tomllib = pytest.importorskip('tomllib', reason='new in Python 3.11')
pytest.importorskip('hatchling', reason="pip install -e '.[dev]'")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT/'pyproject.toml').read_text())['project']


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The folder of a wheel and a source distribution"
    folder = tmp_path_factory.mktemp('dist')
    command = [sys.executable, '-m', 'hatchling', 'build', '-d', folder]
    p = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return folder


@pytest.fixture(scope='module')
def wheel(built):
    file, = built.glob('*.whl')
    with zipfile.ZipFile(file) as opened: yield opened


@pytest.fixture(scope='module')
def source(built, tmp_path_factory):
    "The unpacked source distribution"
    file, = built.glob('*.tar.gz')
    folder = tmp_path_factory.mktemp('source')
    with tarfile.open(file) as opened: opened.extractall(folder, filter='data')
    found, = folder.iterdir()
    return found


def metadata(wheel): return email.message_from_bytes(wheel.read(f'sdfast-{PROJECT["version"]}.dist-info/METADATA'))


def test_the_wheel_has_all_of_the_package(wheel):
    files = {f'sdfast/{f.relative_to(ROOT/"sdfast")}' for f in (ROOT/'sdfast').rglob('*') if f.is_file()}
    files = {f for f in files if '__pycache__' not in f and not f.endswith('_modidx.py')}
    assert {n for n in wheel.namelist() if '.dist-info/' not in n} == files
    assert {'sdfast/py.typed', 'sdfast/report/page.css', 'sdfast/report/page.js'} <= files


def test_its_page_in_an_index_has_no_relative_links(wheel):
    page = metadata(wheel).get_payload()
    links = re.findall(r'\]\(([^)]*)\)', page)
    assert len(links) > 10
    assert all(re.match('https?:|#', link) for link in links)
    assert all('/raw/' in link for link in re.findall(r'!\[[^\]]*\]\(([^)]*)\)', page))


def test_licence_author_and_addresses(wheel):
    found = metadata(wheel)
    assert (found['License-Expression'], found['Author']) == ('Apache-2.0', 'the sdfast authors')
    assert {u.split(', ')[0] for u in found.get_all('Project-URL')} == set(PROJECT['urls'])


def test_the_owner_stands_in_one_file():
    "Who publishes sdfast has one file to edit"
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not files: pytest.skip('not a clone')
    texts = [f for f in files if f.endswith(('.md', '.toml', '.yml', '.yaml', '.cff', '.py', '.ini'))]
    named = [f for f in texts if re.search(r'OWNER(\.github\.io)?/sdfast', (ROOT/f).read_text())]
    assert named == ['pyproject.toml']


def test_the_source_distribution_is_the_repository(source):
    for name in ('tests/conftest.py', 'tests/support/helpers.py', 'experiments/compare.py', 'nbs/index.ipynb',
                 'experiments/results/moving_digits/runs.csv', 'settings.ini', 'CONTRIBUTING.md', '.ci/run'):
        assert (source/name).is_file(), name
    tests = {f.relative_to(ROOT) for f in (ROOT/'tests').rglob('*.py')}
    assert {f.relative_to(source) for f in (source/'tests').rglob('*.py')} == tests


@pytest.mark.nightly
def test_the_tests_run_from_the_source_distribution(source):
    command = [sys.executable, '-m', 'pytest', '-n', '0', 'tests/test_stats.py', 'tests/project/test_layout.py']
    p = subprocess.run(command, cwd=source, capture_output=True, text=True, env=dict(PATH='/usr/bin:/bin'))
    assert p.returncode == 0, p.stdout[-3000:]


def test_settings_ini_is_a_copy():
    config = configparser.ConfigParser()
    config.read(ROOT/'settings.ini', encoding='utf-8')
    settings = dict(config['DEFAULT'])
    assert settings == dict(
        lib_name=PROJECT['name'], version=PROJECT['version'], description=PROJECT['description'],
        keywords=' '.join(PROJECT['keywords']), author=PROJECT['authors'][0]['name'], license='apache2',
        min_python=PROJECT['requires-python'].removeprefix('>='), requirements=' '.join(PROJECT['dependencies']),
        **{f'{name}_requirements':' '.join(needed) for name, needed in PROJECT['optional-dependencies'].items()})


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr('torch.get_num_threads', lambda: 3)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    settings = make_settings('compare')
    assert default_jobs(settings) == 3
    monkeypatch.setattr(launcher_module, 'find_spec', lambda name: None)
    assert default_jobs(settings) == 1
    with pytest.raises(InputError, match=r"--jobs.*pip install 'sdfast\[cluster\]'"): Launcher(2)
    assert Launcher(1).inside
    assert 'submitit' in PROJECT['optional-dependencies']['cluster'][0]


def test_messages_name_extras_that_exist():
    text = '\n'.join(f.read_text() for f in [ROOT/'README.md', *(ROOT/'sdfast').rglob('*.py')])
    named = set(','.join(re.findall(r"(?:sdfast|\.)\[([a-z,]+)\]['\"]", text)).split(','))
    assert {'cluster', 'hf', 'lightning', 'shards'} <= named
    assert named <= set(PROJECT['optional-dependencies'])
