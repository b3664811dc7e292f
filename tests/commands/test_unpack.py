"Archives that climb out of their folder, have links in them, or are damaged."
import io
import os
import shutil
import stat
import zipfile
from collections import namedtuple

import pytest
from archives import CHEW, REAL, UCF, rar, tar, tree, zipped

posix = pytest.mark.skipif(os.name != 'posix', reason='makes programs by a #! line')


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
        with pytest.raises(script.InputError, match='would become 10.0 MB'):
            script.unpack(tmp_path/'x.zip', tmp_path/'x')
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


# Members of an archive, which may name the folder of the test as {root}
CLIMBING = {
    'up': {'../evil.avi': b'x'},
    'in and up': {'a/../../evil.avi': b'x'},
    'absolute': {'{root}/evil.avi': b'x'},
    'link to a file': {'a.avi': b'x', 'b.avi': ('symlink', '{root}/secret')},
    'link to nothing': {'b.avi': ('symlink', 'nowhere')},
    'through a link': {'d': ('symlink', '{root}'), 'd/evil.avi': b'x'},
    'hard link out': {'b.avi': ('hardlink', '../secret')},
    'hard link': {'a.avi': b'x', 'b.avi': ('hardlink', 'a.avi')}}


@posix
@pytest.mark.parametrize('what', CLIMBING)
@pytest.mark.parametrize('pack', [rar, tar])
@pytest.mark.parametrize('tool', ['unrar', 'unar', '7z', '7zz', 'bsdtar'])
def test_members_that_climb_out_of_rars(script, path, tmp_path, tool, pack, what):
    "Refused, or put inside the folder under another name: nothing is written outside, and no link stays"
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
        for f in (tmp_path/'x').rglob('*'):
            if f.is_dir() and not f.is_symlink(): continue
            assert f.lstat().st_nlink == 1
            assert stat.S_ISREG(f.lstat().st_mode)
    shutil.rmtree(tmp_path/'x', ignore_errors=True)
    assert tree(tmp_path) == before


@posix
@pytest.mark.parametrize('status', [0, 3])
@pytest.mark.parametrize('make', [
    "os.symlink('/', 'd')", "os.symlink('x', 'a.avi')", "os.link('../secret', 'a.avi')", "os.mkfifo('a.avi')",
    "os.makedirs('c/d'); os.symlink('..', 'c/d/e')"])
def test_links_that_an_unpacker_leaves(script, path, tmp_path, make, status):
    "Whichever unpacker made them, and before the next one writes over them"
    path('unrar', f'import os, sys; {make}; sys.exit({status})')
    path('unar', 'open("later", "w")')
    (tmp_path/'secret').write_text('s')
    (tmp_path/'x.rar').write_bytes(b'')
    with pytest.raises(script.InputError, match='contains a link or a device'):
        script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert set(os.listdir(tmp_path)) == {'bin', 'secret', 'x.rar'}
    assert (tmp_path/'secret').read_text() == 's'


@posix
def test_a_link_made_by_an_inner_archive(script, path, tmp_path):
    path('unrar', 'import os, sys\n'
                  'if "in.rar" in sys.argv[-1]: os.symlink("/", "d")\n'
                  'else: open("in.rar", "w"), open("z.rar", "w")')
    (tmp_path/'x.rar').write_bytes(b'')
    with pytest.raises(script.InputError, match='in.rar contains a link'): script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert set(os.listdir(tmp_path)) == {'bin', 'x.rar'}


@posix
@pytest.mark.parametrize('tool', REAL)
def test_damaged_rars(script, path, tmp_path, tool):
    path(tool)
    (tmp_path/'x.rar').write_bytes(rar(CHEW)[:-200])
    with pytest.raises(script.InputError, match='x.rar cannot be unpacked') as e:
        script.unpack(tmp_path/'x.rar', tmp_path/'x')
    assert '\n' not in str(e.value)
    assert tool in str(e.value)
    assert set(os.listdir(tmp_path)) == {'bin', 'x.rar'}
