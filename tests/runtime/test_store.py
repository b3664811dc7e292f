"Files are whole or absent, damage is seen, and a folder has one owner whose claim ends with it."
import json
import os
import re
import subprocess
import sys
import time

import pytest

from sdfast.errors import Busy, Damaged, StoreError
from sdfast.runtime import store


def python(code, *args): return [sys.executable, '-c', code, *map(str, args)]


# ---- json

def test_json_comes_back(tmp_path):
    file, d = tmp_path/'a.json', dict(x=1.5, nan=float('nan'), text='ä', none=None, deep=dict(l=[1, 2]))
    store.write_json(file, d)
    got = store.read_json(file)
    assert (nan := got.pop('nan')) != nan
    assert got == {k:v for k, v in d.items() if k != 'nan'}


def test_json_is_json(tmp_path):
    store.write_json(tmp_path/'a', dict(b=1))
    assert json.loads((tmp_path/'a').read_text())['b'] == 1


def test_damaged_json_is_seen(tmp_path):
    file = tmp_path/'a.json'
    store.write_json(file, dict(x=1.5, text='ä'))
    whole = file.read_bytes()
    damaged = (whole[:-20], whole[:len(whole)//2], b'', b'[]', b'{}', whole.replace(b'1.5', b'1.6'), b'\xff'*50)
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(Damaged, match='a.json is damaged'): store.read_json(file)
    file.unlink()
    with pytest.raises(FileNotFoundError): store.read_json(file)


# ---- digests

def test_every_byte_of_a_sealed_folder_counts(tmp_path):
    data = bytearray(bytes(range(256))*10)
    (tmp_path/'a.csv').write_bytes(data)
    (tmp_path/'.hidden').write_text('')
    seal = store.seal(tmp_path)
    assert list(seal) == ['a.csv']
    store.verify(tmp_path, seal)
    data[1000] ^= 1
    (tmp_path/'a.csv').write_bytes(data)
    with pytest.raises(Damaged, match='a.csv is damaged'): store.verify(tmp_path, seal)
    (tmp_path/'a.csv').unlink()
    with pytest.raises(Damaged, match='a.csv is missing'): store.verify(tmp_path, seal)


def test_put_and_find(tmp_path):
    for i in (9, 10, 2): store.put(tmp_path, f'epoch-{i:05}', bytes([i]), 'pt')
    (tmp_path/'epoch-00099.pt').write_text('not ours')
    files = store.find(tmp_path, 'epoch-*', 'pt')
    assert [f.name[:11] for f in files] == ['epoch-00010', 'epoch-00009', 'epoch-00002']
    files[0].write_bytes(b'x')
    with pytest.raises(Damaged, match='epoch-00010'): store.find(tmp_path, 'epoch-*', 'pt')
    assert len(store.find(tmp_path, 'epoch-*', 'pt', check=False)) == 3


# ---- writing

WRITER = '''
import sys
from sdfast.runtime import store
i = 0
while True:
    i += 1
    store.write_json(sys.argv[1], dict(n=i, pad='x'*50_000))
    print(i, flush=True)
'''


def test_killed_while_writing_leaves_a_whole_file(tmp_path):
    file = tmp_path/'a.json'
    for wait in (.05, .11, .17):
        p = subprocess.Popen(python(WRITER, file), stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(wait)
        p.kill()
        p.wait()
        last = int((p.stdout.read().split() or [1])[-1])
        assert store.read_json(file)['n'] in (last, last + 1)


FULL = '''
import resource, signal, sys
from sdfast.runtime import store
from sdfast.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: store.write_json(sys.argv[1], dict(pad='x'*5000))
except StoreError as e: print(e)
'''


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path):
    file = tmp_path/'a.json'
    store.write_json(file, dict(n=1))
    p = subprocess.run(python(FULL, file), capture_output=True, text=True)
    message = '.*a.json cannot be written: File too large.*the same command resumes it\n'
    assert re.fullmatch(message, p.stdout), p.stdout + p.stderr
    assert store.read_json(file) == dict(n=1)
    assert [f.name for f in tmp_path.iterdir()] == ['a.json']


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(StoreError, match='cannot be written: Not a directory'): store.write(tmp_path/'file'/'x', 'y')
    with pytest.raises(StoreError, match='cannot be made'):
        with store.claim(tmp_path/'file'/'x'): pass


# ---- claims

OWNER = '''
import sys, time
from sdfast.runtime import store
with store.claim(sys.argv[1]):
    print('mine', flush=True)
    time.sleep(float(sys.argv[2]))
'''


def start_owner(folder, seconds):
    p = subprocess.Popen(python(OWNER, folder, seconds), stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == 'mine\n'
    return p


def test_a_folder_has_one_owner(tmp_path):
    folder = tmp_path/'run'
    assert store.owner(folder) == ''
    with store.claim(folder, wait=False):
        assert store.owner(folder).startswith(f'process {os.getpid()} on ')
        with pytest.raises(Busy):
            with store.claim(folder, wait=False): pass
    assert store.owner(folder) == ''


def test_a_claim_ends_with_its_process(tmp_path):
    folder = tmp_path/'run'
    p = start_owner(folder, 60)
    try:
        assert store.owner(folder).startswith(f'process {p.pid} on ')
        with pytest.raises(Busy, match=f'process {p.pid}'):
            with store.claim(folder, wait=False): pass
    finally:
        p.kill()
        p.wait()
    assert store.owner(folder) == ''
    with store.claim(folder, wait=False): pass


def test_a_wait_is_reported_once_and_ends_with_the_claim(tmp_path):
    p, lines = start_owner(tmp_path, 1.), []
    with store.claim(tmp_path, say=lines.append, every=.05):
        assert len(lines) == 1
        assert f'waiting for process {p.pid}' in lines[0]
    p.wait()
