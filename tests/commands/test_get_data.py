"Downloading and unpacking, from a host on this machine that breaks off, forgets and lies."
import hashlib
import io
import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

EXPERIMENTS = Path(__file__).parents[2]/'experiments'
posix = pytest.mark.skipif(os.name != 'posix', reason='makes programs by a #! line')


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        host, name, span, guard = self.server, self.path.rpartition('/')[2], self.headers.get('Range'), self.headers.get('If-Range')
        host.asked.append((name, span))
        if host.status or name not in host.files: return self.send_error(host.status or 404)
        data = host.files[name]
        tag = f'"{zlib.crc32(data)}"'
        first = int(span[6:-1]) if span and host.ranges and (guard in (None, tag) or not host.guards) else 0
        if first and first >= len(data): return self.send_error(416)
        self.send_response(206 if first else 200)
        for k, v in {'Content-Type': host.type, 'Content-Length': len(data) - first, 'ETag': tag}.items(): self.send_header(k, str(v))
        if first: self.send_header('Content-Range', f'bytes {first}-{len(data) - 1}/{len(data)}')
        self.end_headers()
        cut = host.cuts.pop(0) if host.cuts else None
        self.wfile.write(data[first:][:cut])
        self.wfile.flush()
        if cut is not None: host.go_on.wait(20)


class Host(ThreadingHTTPServer):
    "Has `files`; what was asked for is in `asked`, as names and ranges"
    daemon_threads = block_on_close = False

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.type, self.status = {}, [], 'application/octet-stream', None
        self.ranges = self.guards = True # Whether it heeds Range and If-Range
        self.cuts = [] # After how many bytes the next answers break off; None for whole ones
        self.go_on = threading.Event() # Until when a broken answer hangs
        self.go_on.set()
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(.01,), daemon=True).start()

    def handle_error(self, *_): pass  # the other side was killed


@pytest.fixture
def host():
    host = Host()
    yield host
    host.go_on.set()
    host.shutdown()
    host.server_close()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


def rar(files):
    "A RAR 5 archive that stores its files uncompressed; instead of data a file may have `SYMLINK` or `HARDLINK` and what it leads to"
    def vint(n): return bytes([n & 127 | 128]) + vint(n >> 7) if n > 127 else bytes([n])
    def header(*fields):
        body = b''.join(f if isinstance(f, bytes) else vint(f) for f in fields)
        body = vint(len(body)) + body
        return zlib.crc32(body).to_bytes(4, 'little') + body
    out = b'Rar!\x1a\x07\x01\x00' + header(1, 0, 0)
    for name, data in files.items():
        name = name.encode()
        if isinstance(data, tuple):
            target = data[1].encode()
            record = vint(5) + vint(dict(symlink=1, hardlink=4)[data[0]]) + vint(0) + vint(len(target)) + target
            extra = vint(len(record)) + record
            out += header(2, 3, len(extra), 0, 4, 0, 0o100644, bytes(4), 0, 1, len(name), name, extra)
        else: out += header(2, 2, len(data), 4, len(data), 0o100644, zlib.crc32(data).to_bytes(4, 'little'), 0, 1, len(name), name) + data
    return out + header(5, 0, 0)


VIDEOS = {f'UCF-101/{c}/v_{c}_g{i:02}_c01.avi': os.urandom(5000) for c in ('Archery', 'YoYo') for i in range(4)}
UCF = {'lists.zip': zipped({'ucfTrainTestlist/trainlist01.txt': '\r\n'.join(f'{n[8:]} 1' for n in list(VIDEOS)[:5]) + '\r\n',
                            'ucfTrainTestlist/testlist01.txt': '\r\n'.join(n[8:] for n in list(VIDEOS)[5:]), 'ucfTrainTestlist/trainlist02.txt': 'x\n'}),
       'videos.zip': zipped(VIDEOS)}
AWKWARD = ('#2_Gum_chew_h_nm_np1_fr_goo_0.avi', "a[1](2) {b};&!$x'`~=+,@_chew_h_nm_np1_fr_goo_1.avi", '-o_chew_u_cm_np1_ba_bad_0.avi')
CHEW, WAVE = ({f'{c}/{n}': f'{c} {n}'.encode()*50 for n in AWKWARD} for c in ('chew', 'wave'))


def hmdb_archives(pack):
    text = ''.join(f'{n} {tag} \n' for n, tag in zip(AWKWARD, '120')).encode()
    lists = {f'testTrainMulti_7030_splits/{c}_test_split{k}.txt': text for c in ('chew', 'wave') for k in (1, 2)}
    return {'lists.rar': pack(lists), 'videos.rar': pack({'chew.rar': pack(CHEW), 'wave.rar': pack(WAVE)})}


@pytest.fixture
def script(monkeypatch, host):
    "The script as a module, with small data sets on `host`"
    from sdfast.commands import get_data
    for k, v in dict(WAITS=(0, 0), TIMEOUT=5, DATASETS={}).items(): monkeypatch.setattr(get_data, k, v)
    def small(lists, videos, folders, counts):
        both = [get_data.Archive(name, folder, 30_000, 30_000, hashlib.sha256(data).hexdigest()) for (name, data), folder in zip((lists, videos), folders)]
        return get_data.DataSet(host.url, *both, counts)
    def hmdb(pack):
        host.files = hmdb_archives(pack)
        get_data.DATASETS['hmdb51'] = small(*host.files.items(), ('testTrainMulti_7030_splits', 'hmdb51'), (2, 6, 2, 2))
    monkeypatch.setattr(get_data, 'hmdb', hmdb, raising=False)
    get_data.DATASETS['ucf101'] = small(*UCF.items(), ('ucfTrainTestlist', 'UCF-101'), (2, 8, 5, 3))
    host.files = dict(UCF)
    return get_data


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
    return ran.status == 2 and ran.err.startswith('get_data.py: ') and ran.err.count('\n') == 1 and all(w in ran.err for w in words) or pytest.fail(str(ran))


def tree(path): return {f.relative_to(path).as_posix():f.read_bytes() for f in path.rglob('*') if f.is_file()}


def complete(data): return set(os.listdir(data)) == {'UCF-101', 'ucfTrainTestlist'} and {n:b for n, b in tree(data).items() if n[0] == 'U'} == VIDEOS


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
    failed(run(), 'videos.zip', '7.0 kB are here', 'the same command goes on from there')
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


@pytest.mark.parametrize('guards', [True, False])
def test_a_file_that_changes_meanwhile_is_not_glued_together(script, host, tmp_path, guards):
    host.guards, host.cuts = guards, [7000, 0, 0]
    archive = replace(script.DATASETS['ucf101'].videos, sha256=None)
    with pytest.raises(script.InputError): script.download(archive, tmp_path, host.url)
    host.files['videos.zip'] = new = os.urandom(20_000)
    assert script.download(archive, tmp_path, host.url).read_bytes() == new
    assert host.asked[3:] == [('videos.zip', 'bytes=7000-')] + [('videos.zip', None)]*(not guards)


def test_whole_but_not_yet_named_so_and_longer_than_the_file(script, host, tmp_path, monkeypatch):
    archive, part = script.DATASETS['ucf101'].videos, tmp_path/'videos.zip.part'
    n = len(UCF['videos.zip'])
    part.write_bytes(UCF['videos.zip'])
    (tmp_path/'videos.zip.part.stamp').write_text(f'{n} "x"')
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):  # while the sum is taken
        m.setattr(script, 'sha256', lambda _: signal.raise_signal(signal.SIGINT))
        script.download(archive, tmp_path, host.url)
    assert script.download(archive, tmp_path, host.url).read_bytes() == UCF['videos.zip']
    assert host.asked == []
    (tmp_path/'videos.zip').rename(part)
    (tmp_path/'videos.zip.part.stamp').write_text(f'{2*n} "{zlib.crc32(UCF["videos.zip"])}"')
    assert script.download(archive, tmp_path, host.url).read_bytes() == UCF['videos.zip']
    assert [s for _, s in host.asked] == [f'bytes={n}-', None]


def test_wrong_checksum(run, host, tmp_path):
    good, data = host.files['videos.zip'], tmp_path/'data'
    host.files['videos.zip'] = bad = zipped(dict(list(VIDEOS.items())[:3]))
    failed(run(), 'videos.zip is not the published file', 'videos.zip.bad', 'the same command downloads it anew')
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
    failed(run(url_base='http://127.0.0.1:1/x'), 'refused', 'goes on from there')
    failed(run(url_base='http://127.0.0.1:1/x', to=str(tmp_path/'b')), 'refused', 'try again later', '--url-base')


def test_another_host(run, script, host, tmp_path):
    script.DATASETS['ucf101'] = replace(script.DATASETS['ucf101'], base='http://127.0.0.1:1')
    assert run(url_base=f'{host.url}/mirror/').status == 0
    assert complete(tmp_path/'data')


def test_zips_stay_in_their_folder(script, tmp_path):
    for name in ('../evil.avi', '/tmp/evil.avi', 'a/../../evil.avi'):
        (tmp_path/'x.zip').write_bytes(zipped({'good.avi': b'', name: b''}))
        with pytest.raises(script.InputError, match='outside its folder'): script.unpack(tmp_path/'x.zip', tmp_path/'x')
    (tmp_path/'x.zip').write_bytes(UCF['videos.zip'][:-50])
    with pytest.raises(script.InputError, match='cannot be unpacked'): script.unpack(tmp_path/'x.zip', tmp_path/'x')
    assert os.listdir(tmp_path) == ['x.zip']


def test_links_in_zips_become_files(script, tmp_path):
    (tmp_path/'secret').write_text('s')
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, kind in (('link.avi', stat.S_IFLNK), ('pipe.avi', stat.S_IFIFO)):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, (kind | 0o777) << 16
            z.writestr(info, '../secret')
    (tmp_path/'x.zip').write_bytes(out.getvalue())
    script.unpack(tmp_path/'x.zip', tmp_path/'x')
    assert all(stat.S_ISREG(f.lstat().st_mode) for f in (tmp_path/'x').iterdir())
    assert tree(tmp_path/'x') == {'link.avi': b'../secret', 'pipe.avi': b'../secret'}
    with zipfile.ZipFile(tmp_path/'y.zip', 'w') as z:  # a link to a folder, and a file to be written through it
        info = zipfile.ZipInfo('d')
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        z.writestr(info, str(tmp_path))
        z.writestr('d/evil.avi', 'x')
    with pytest.raises(OSError): script.unpack(tmp_path/'y.zip', tmp_path/'y')
    assert set(os.listdir(tmp_path)) == {'secret', 'x', 'x.zip', 'y.zip'}


def test_zips_that_are_more_than_they_say_or_than_there_is_room_for(script, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.avi', bytes(10**7))
    with monkeypatch.context() as m:
        m.setattr(script.shutil, 'disk_usage', lambda _: namedtuple('Usage', 'free')(10**7 - 1))
        with pytest.raises(script.InputError, match='would become 10.0 MB'): script.unpack(tmp_path/'x.zip', tmp_path/'x')
    b = bytearray((tmp_path/'x.zip').read_bytes())
    assert len(b) < 20_000
    assert b.count((10**7).to_bytes(4, 'little')) == 2
    (tmp_path/'x.zip').write_bytes(b.replace((10**7).to_bytes(4, 'little'), (10).to_bytes(4, 'little')))
    with pytest.raises(script.InputError, match='cannot be unpacked'): script.unpack(tmp_path/'x.zip', tmp_path/'x')
    for flag, kind in ((1, 0), (0, 77)):  # encrypted, and of a method that nobody has
        b = bytearray(zipped({'a.avi': b'x'}))
        for at in (b.index(b'PK\3\4') + 6, b.index(b'PK\1\2') + 8): b[at], b[at + 2] = flag, kind
        (tmp_path/'x.zip').write_bytes(b)
        with pytest.raises(script.InputError, match='cannot be unpacked'): script.unpack(tmp_path/'x.zip', tmp_path/'x')
    assert os.listdir(tmp_path) == ['x.zip']


def tar(files):
    "The same as `rar` of the same, for unpackers that look at the content and not at the name"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple): info.type, info.linkname = dict(symlink=tarfile.SYMTYPE, hardlink=tarfile.LNKTYPE)[data[0]], data[1]
            else: info.size = len(data)
            t.addfile(info, None if isinstance(data, tuple) else io.BytesIO(data))
    return out.getvalue()


CLIMBING = {'up': {'../evil.avi': b'x'}, 'in and up': {'a/../../evil.avi': b'x'}, 'absolute': {'{root}/evil.avi': b'x'}, 'link to a file': {'a.avi': b'x', 'b.avi': ('symlink', '{root}/secret')},
            'link to nothing': {'b.avi': ('symlink', 'nowhere')}, 'through a link': {'d': ('symlink', '{root}'), 'd/evil.avi': b'x'}, 'hard link out': {'b.avi': ('hardlink', '../secret')},
            'hard link': {'a.avi': b'x', 'b.avi': ('hardlink', 'a.avi')}}


@posix
@pytest.mark.parametrize('what', CLIMBING)
@pytest.mark.parametrize('pack', [rar, tar])
@pytest.mark.parametrize('tool', ['unrar', 'unar', '7z', '7zz', 'bsdtar'])
def test_members_that_climb_out_of_rars(script, path, tmp_path, tool, pack, what):
    "Refused by the unpacker or by us, or put inside under another name: nothing comes to lie outside, and no link stays"
    path(tool)
    (tmp_path/'secret').write_text('s')
    fill = lambda s: s.format(root=tmp_path)
    files = {fill(n):(v[0], fill(v[1])) if isinstance(v, tuple) else v for n, v in CLIMBING[what].items()}
    (tmp_path/'x.rar').write_bytes(pack(files))
    before = tree(tmp_path)
    try: script.unpack(tmp_path/'x.rar', tmp_path/'x')
    except script.InputError as e: assert '\n' not in str(e)
    else:
        assert not any(isinstance(v, tuple) for v in files.values())
        assert all(f.lstat().st_nlink == 1 and stat.S_ISREG(f.lstat().st_mode) for f in (tmp_path/'x').rglob('*') if not f.is_dir() or f.is_symlink())
    shutil.rmtree(tmp_path/'x', ignore_errors=True)
    assert tree(tmp_path) == before


@posix
@pytest.mark.parametrize('status', [0, 3])
@pytest.mark.parametrize('make', ["os.symlink('/', 'd')", "os.symlink('x', 'a.avi')", "os.link('../secret', 'a.avi')", "os.mkfifo('a.avi')", "os.makedirs('c/d'); os.symlink('..', 'c/d/e')"])
def test_links_that_an_unpacker_leaves(script, path, tmp_path, make, status):
    "Whichever unpacker made them, and before the next one writes over them"
    path('unrar', f'import os, sys; {make}; sys.exit({status})')
    path('unar', 'open("later", "w")')
    (tmp_path/'secret').write_text('s')
    (tmp_path/'x.rar').write_bytes(b'')
    with pytest.raises(script.InputError, match='has a link or a device in it'): script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert set(os.listdir(tmp_path)) == {'bin', 'secret', 'x.rar'}
    assert (tmp_path/'secret').read_text() == 's'


@posix
def test_a_link_made_by_an_inner_archive(script, path, tmp_path):
    path('unrar', 'import os, sys\nif "in.rar" in sys.argv[-1]: os.symlink("/", "d")\nelse: open("in.rar", "w"), open("z.rar", "w")')
    (tmp_path/'x.rar').write_bytes(b'')
    with pytest.raises(script.InputError, match='in.rar has a link'): script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert set(os.listdir(tmp_path)) == {'bin', 'x.rar'}


def test_what_a_killed_unpacking_left_is_no_hindrance(run, tmp_path):
    half = tmp_path/'data/UCF-101.unpacking/UCF-101/Archery'
    half.mkdir(parents=True)
    (half/'half.avi').write_bytes(b'')
    assert run().status == 0
    assert complete(tmp_path/'data')


@pytest.fixture
def path(tmp_path, monkeypatch):
    "A function that makes programs the only ones there are: file names, or name and Python code"
    monkeypatch.setenv('PATH', str(tmp_path/'bin'))
    (tmp_path/'bin').mkdir()
    def path(name, code=None):
        file = tmp_path/'bin'/name
        if code is None:
            if not REAL[name]: pytest.skip(f'{name} is not installed')
            if name[0] == '7' and 'Rar' not in subprocess.run([REAL[name], 'i'], capture_output=True, text=True).stdout: pytest.skip(f'this {name} is built without rar')
            return file.symlink_to(REAL[name])
        file.write_text(f'#!{sys.executable}\n{code}\n')
        file.chmod(0o755)
    return path


UNZIP = 'import sys, zipfile; zipfile.ZipFile(sys.argv[-1]).extractall()'  # an unpacker for tests that need none
REAL = {name:shutil.which(name) for name in ('unrar', 'unar', '7z', '7zz', 'bsdtar')}


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
@pytest.mark.parametrize('tool', REAL)
def test_damaged_rars(script, path, tmp_path, tool):
    path(tool)
    (tmp_path/'x.rar').write_bytes(rar(CHEW)[:-200])
    with pytest.raises(script.InputError, match='x.rar cannot be unpacked') as e: script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert '\n' not in str(e.value)
    assert tool in str(e.value)
    assert set(os.listdir(tmp_path)) == {'bin', 'x.rar'}


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
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', cert, '-subj', '/CN=localhost'], check=True, capture_output=True)
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
    monkeypatch.setattr(script, 'console', Console(file=out, force_terminal=True, width=100))
    assert run().status == 0
    assert 'videos.zip' in out.getvalue()
    assert '━' in out.getvalue()


BAD = {'ucf': "unknown dataset 'ucf'; known are ucf101, hmdb51", 'ucf101': '--to', 'hmdb51 --to x --url-base ftp://x': '--url-base must begin with http'}


@pytest.mark.parametrize('args,word', BAD.items(), ids=list(BAD))
def test_bad_arguments_as_a_process(args, word, tmp_path):
    p = subprocess.run([sys.executable, EXPERIMENTS/'get_data.py', *args.split()], capture_output=True, text=True, cwd=tmp_path)
    failed(Ran(p.returncode, p.stdout, p.stderr), word)
    assert not os.listdir(tmp_path)


@posix
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGKILL])
def test_stopped_midway_then_going_on(script, host, tmp_path, run, sign):
    data, part = tmp_path/'data', tmp_path/'data/videos.zip.part'
    code = 'import sys; from sdfast.commands import get_data; from sdfast.commands.get_data import *; get_data.DATASETS = eval(sys.argv[2]); ' \
           'get_data.main(name="ucf101", to=sys.argv[3])'
    host.cuts = [None, 7000]
    host.go_on.clear()
    p = subprocess.Popen([sys.executable, '-c', code, EXPERIMENTS, repr(script.DATASETS), data], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 20
    while (not part.exists() or part.stat().st_size < 7000) and time.time() < deadline and p.poll() is None: time.sleep(.02)
    p.send_signal(sign)
    _, err = p.communicate(timeout=20)
    if sign == signal.SIGINT:
        assert p.returncode == 130
        assert err == 'get_data.py: stopped; the same command goes on from there\n'
    assert part.stat().st_size == 7000
    host.go_on.set()
    assert run().status == 0
    assert complete(data)
    assert host.asked[-1] == ('videos.zip', 'bytes=7000-')
