"Getting a data set: downloaded, unpacked, counted; errors are one line, and the same command resumes."
import io
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from archives import CHEW, REAL, UCF, UNZIP, VIDEOS, WAVE, rar, tree, zipped
from rich.console import Console

from sdfast.commands import console as console_module

posix = pytest.mark.skipif(os.name != 'posix', reason='makes programs by a #! line')
EXPERIMENTS = Path(__file__).parents[2]/'experiments'
Ran = namedtuple('Ran', 'status out err')


@pytest.fixture
def run(script, capsys, tmp_path):
    "The script in this process: into tmp_path/data, exit status and what it printed"
    def run(name='ucf101', **args):
        status = 0
        try: script.main(name=name, **dict(to=str(tmp_path/'data')) | args)
        except SystemExit as e: status = e.code
        return Ran(status, *capsys.readouterr())
    return run


def failed(ran, *words):
    "One clear line on stderr and status 2"
    assert ran.status == 2
    assert ran.err.startswith('get_data.py: ')
    assert ran.err.count('\n') == 1
    for word in words: assert word in ran.err


def complete(data):
    "Whether a folder has the miniature UCF101 and nothing else"
    videos = {name:content for name, content in tree(data).items() if name.startswith('UCF-101/')}
    return set(os.listdir(data)) == {'UCF-101', 'ucfTrainTestlist'} and videos == VIDEOS


def test_whole_download_and_nothing_to_do_after_it(run, host, tmp_path):
    ran = run()
    assert ran.status == 0
    assert ran.err == ''
    assert complete(tmp_path/'data')
    assert f'ucf101: 2 classes, 8 videos, 5 train and 3 test in fold 1; use it as ucf101:{tmp_path}/data' in ran.out
    assert 'videos.zip: 100% of' in ran.out
    assert host.asked == [('lists.zip', None), ('videos.zip', None)]
    ran = run()
    assert ran.status == 0
    assert ran.out.count('\n') == 1
    assert len(host.asked) == 2


def test_keep_archives_and_archives_that_are_there_already(run, host, tmp_path):
    data = tmp_path/'data'
    data.mkdir()
    (data/'videos.zip').write_bytes(UCF['videos.zip'])
    assert run(keep_archives=True).status == 0
    assert host.asked == [('lists.zip', None)]
    assert all((data/name).read_bytes() == UCF[name] for name in UCF)
    shutil.rmtree(data/'UCF-101')
    assert run().status == 0
    assert complete(data)
    assert len(host.asked) == 1


def test_breaks_are_gone_over(run, host, tmp_path):
    host.cuts = [None, 7000, 1, 12000]
    ran = run()
    assert ran.status == 0
    assert complete(tmp_path/'data')
    assert 'broke off at 7.0 kB of' in ran.out
    assert host.asked[1:] == [('videos.zip', span) for span in (None, 'bytes=7000-', 'bytes=7001-', 'bytes=19001-')]


def test_broken_off_for_good_then_resumed(run, script, host, tmp_path):
    host.cuts = [None, 7000, 0, 0]
    failed(run(), 'videos.zip', '7.0 kB are here', 'the same command resumes')
    assert (tmp_path/'data/videos.zip.part').read_bytes() == UCF['videos.zip'][:7000]
    assert not (tmp_path/'data/videos.zip').exists()
    host.status = 503
    failed(run(), '503', '7.0 kB are here')
    host.status, asked = None, len(host.asked)
    assert run(keep_archives=True).status == 0
    assert host.asked[asked:] == [('videos.zip', 'bytes=7000-')]
    assert (tmp_path/'data/videos.zip').read_bytes() == UCF['videos.zip']
    assert not list((tmp_path/'data').glob('*.part*'))


def test_a_host_that_ignores_ranges(run, host, tmp_path):
    host.ranges, host.cuts = False, [None, 7000]
    assert run().status == 0
    assert complete(tmp_path/'data')
    assert host.asked[-1] == ('videos.zip', 'bytes=7000-')


def test_wrong_checksum(run, host, tmp_path):
    good, data = host.files['videos.zip'], tmp_path/'data'
    host.files['videos.zip'] = bad = zipped(dict(list(VIDEOS.items())[:3]))
    failed(run(), 'videos.zip is not the published file', 'videos.zip.bad', 'the same command downloads it again')
    assert (data/'videos.zip.bad').read_bytes() == bad
    assert set(os.listdir(data)) == {'videos.zip.bad', 'ucfTrainTestlist', 'lists.zip'}
    (data/'videos.zip.bad').rename(data/'videos.zip')
    failed(run(no_checksum=True), 'UCF-101 has 1 classes and 3 videos, not 2 classes and 8 videos', 'delete it')
    shutil.rmtree(data/'UCF-101')
    failed(run(), 'is not the published file')
    host.files['videos.zip'] = good
    assert run().status == 0
    assert complete(data)
    assert [n for n, _ in host.asked] == ['lists.zip', 'videos.zip', 'videos.zip']


def test_not_found_and_not_a_file(run, host, tmp_path):
    del host.files['lists.zip']
    failed(run(), f'{host.url}/lists.zip: 404 Not Found', '--url-base')
    assert len(host.asked) == 1
    host.files, host.cuts = dict(UCF), [None, 7000, 0, 0]
    failed(run(), 'are here')
    host.type, host.files['videos.zip'] = 'text/html', b'<html>Please log in'
    failed(run(), 'is a web page')
    assert (tmp_path/'data/videos.zip.part').stat().st_size == 7000
    failed(run(url_base='http://127.0.0.1:1/x'), 'refused', 'the same command resumes')
    failed(run(url_base='http://127.0.0.1:1/x', to=str(tmp_path/'b')), 'refused', 'try again later', '--url-base')


def test_another_host(run, script, host, tmp_path):
    script.DATASETS['ucf101'] = replace(script.DATASETS['ucf101'], base='http://127.0.0.1:1')
    assert run(url_base=f'{host.url}/mirror/').status == 0
    assert complete(tmp_path/'data')


def test_what_a_killed_unpacking_left_is_no_hindrance(run, tmp_path):
    half = tmp_path/'data/UCF-101.unpacking/UCF-101/Archery'
    half.mkdir(parents=True)
    (half/'half.avi').write_bytes(b'')
    assert run().status == 0
    assert complete(tmp_path/'data')


@posix
@pytest.mark.parametrize('tool', [None, *REAL])
def test_hmdb51_rars_within_a_rar(script, run, path, tmp_path, tool):
    if tool: path(tool)
    else: path('unar', UNZIP)
    script.hmdb(rar if tool else zipped)
    ran = run('hmdb51', to=str(tmp_path/"it's [1] (2); #*&!"))
    assert ran.status == 0 and '2 classes, 6 videos, 2 train and 2 test' in ran.out, ran
    data = tmp_path/"it's [1] (2); #*&!"
    assert tree(data/'hmdb51') == CHEW | WAVE
    assert set(os.listdir(data)) == {'hmdb51', 'testTrainMulti_7030_splits'}


@posix
def test_without_an_unpacker_and_with_one_that_cannot(script, host, run, path, tmp_path):
    script.hmdb(zipped)
    (tmp_path/'data').mkdir()
    (tmp_path/'data/videos.rar').write_bytes(host.files['videos.rar'])
    failed(run('hmdb51'), 'unrar, unar, 7z, 7zz, bsdtar', 'apt install unar', 'what is downloaded is kept')
    path('unrar', 'import sys; print("Unknown method\\n"); sys.exit(3)')
    failed(run('hmdb51'), 'unrar: Unknown method', 'install another')
    assert [n for n, _ in host.asked] == ['lists.rar']
    assert set(os.listdir(tmp_path/'data')) == {'videos.rar', 'lists.rar'}
    path('bsdtar', UNZIP)
    assert run('hmdb51').status == 0
    assert len(host.asked) == 1
    assert tree(tmp_path/'data/hmdb51') == CHEW | WAVE


def test_wrong_counts(run, script, tmp_path):
    script.DATASETS['ucf101'] = replace(script.DATASETS['ucf101'], counts=(2, 8, 5, 4))
    failed(run(), 'ucfTrainTestlist has 5 train and 3 test videos in fold 1, not 5 train and 4 test')
    assert {'lists.zip', 'videos.zip'} < set(os.listdir(tmp_path/'data'))


def test_disk_space_and_disk_errors(run, script, host, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(script.shutil, 'disk_usage', lambda _: namedtuple('Usage', 'free')(110_000))
        failed(run(), '110.0 kB free, 120.0 kB are needed')
        assert host.asked == []
        (tmp_path/'data/videos.zip.part').write_bytes(b'x'*20_000)
        assert run().status == 0  # whose beginning is no one's
    (tmp_path/'file').write_text('')
    failed(run(to=str(tmp_path/'file/x')), 'cannot be written')
    (tmp_path/'other/lists.zip.part').mkdir(parents=True)
    failed(run(to=str(tmp_path/'other')), 'lists.zip.part cannot be written: Is a directory')


def test_certificates(run, tmp_path, host):
    if not shutil.which('openssl'): pytest.skip('openssl is not installed')
    key, cert = tmp_path/'key', tmp_path/'cert'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert,
               '-subj', '/CN=localhost']
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    host.socket = context.wrap_socket(host.socket, server_side=True)
    base = host.url.replace('http', 'https')
    failed(run(url_base=base), 'certificate cannot be verified', '--insecure (the file is still checked')
    failed(run(url_base=base, no_checksum=True), '--insecure (but nothing then checks the file')
    ran = run(url_base=base, insecure=True)
    assert ran.status == 0
    assert complete(tmp_path/'data')
    assert 'warning' not in ran.out
    assert 'warning' in run(to=str(tmp_path/'b'), url_base=base, insecure=True, no_checksum=True).out


def test_a_bar_on_a_terminal(run, script, host, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console_module, 'console', Console(file=out, force_terminal=True, width=100))
    assert run().status == 0
    assert 'videos.zip' in out.getvalue()
    assert '━' in out.getvalue()


BAD = {
    'ucf': "unknown dataset 'ucf'; known are ucf101, hmdb51", 'ucf101': '--to',
    'hmdb51 --to x --url-base ftp://x': '--url-base must begin with http'}


@pytest.mark.parametrize('args,word', BAD.items(), ids=list(BAD))
def test_bad_arguments_as_a_process(args, word, tmp_path):
    command = [sys.executable, EXPERIMENTS/'get_data.py', *args.split()]
    p = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    failed(Ran(p.returncode, p.stdout, p.stderr), word)
    assert not os.listdir(tmp_path)


GET = """
import sys
from sdfast.commands import get_data
from sdfast.commands.get_data import Archive, DataSet
get_data.DATASETS = eval(sys.argv[1])
get_data.main(name='ucf101', to=sys.argv[2])
"""


@posix
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGKILL])
def test_stopped_midway_then_resumed(script, host, tmp_path, run, sign):
    data, part = tmp_path/'data', tmp_path/'data/videos.zip.part'
    host.cuts = [None, 7000]
    host.go_on.clear()
    command = [sys.executable, '-c', GET, repr(script.DATASETS), data]
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 200  # a busy machine takes a while to import
    def begun(): return part.exists() and part.stat().st_size >= 7000
    while not begun() and time.time() < deadline and p.poll() is None: time.sleep(.02)
    p.send_signal(sign)
    _, err = p.communicate(timeout=60)
    if sign == signal.SIGINT:
        assert p.returncode == 130
        assert err == 'get_data.py: stopped; the same command resumes\n'
    assert part.stat().st_size == 7000
    host.go_on.set()
    assert run().status == 0
    assert complete(data)
    assert host.asked[-1] == ('videos.zip', 'bytes=7000-')
