"A host on this machine that breaks off, forgets and lies, and small archives for it."
import io
import os
import shutil
import tarfile
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Programs that read rar archives
REAL = {name:shutil.which(name) for name in ('unrar', 'unar', '7z', '7zz', 'bsdtar')}
# One that reads zip archives of any name, for tests that need none of them
UNZIP = 'import sys, zipfile; zipfile.ZipFile(sys.argv[-1]).extractall()'


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        host, name = self.server, self.path.rpartition('/')[2]
        span, guard = self.headers.get('Range'), self.headers.get('If-Range')
        host.asked.append((name, span))
        if host.status or name not in host.files: return self.send_error(host.status or 404)
        data = host.files[name]
        tag = f'"{zlib.crc32(data)}"'
        first = int(span[6:-1]) if span and host.ranges and (guard in (None, tag) or not host.guards) else 0
        if first and first >= len(data): return self.send_error(416)
        self.send_response(206 if first else 200)
        headers = {'Content-Type': host.type, 'Content-Length': len(data) - first, 'ETag': tag}
        for k, v in headers.items(): self.send_header(k, str(v))
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


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


def rar(files):
    """A RAR 5 archive that stores its files uncompressed.

    Instead of data a file may have a tuple: 'symlink' or 'hardlink' and where it leads."""
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
        else:
            checksum = zlib.crc32(data).to_bytes(4, 'little')
            out += header(2, 2, len(data), 4, len(data), 0o100644, checksum, 0, 1, len(name), name) + data
    return out + header(5, 0, 0)


def tar(files):
    "The same as `rar` of the same, for unpackers that look at the content and not at the name"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                info.type = dict(symlink=tarfile.SYMTYPE, hardlink=tarfile.LNKTYPE)[data[0]]
                info.linkname = data[1]
                t.addfile(info)
            else:
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
    return out.getvalue()


VIDEOS = {f'UCF-101/{c}/v_{c}_g{i:02}_c01.avi': os.urandom(5000) for c in ('Archery', 'YoYo') for i in range(4)}


NAMES = [name.removeprefix('UCF-101/') for name in VIDEOS]
LISTS = {
    'ucfTrainTestlist/trainlist01.txt': '\r\n'.join(f'{n} 1' for n in NAMES[:5]) + '\r\n',
    'ucfTrainTestlist/testlist01.txt': '\r\n'.join(NAMES[5:]),
    'ucfTrainTestlist/trainlist02.txt': 'x\n'}
UCF = {'lists.zip': zipped(LISTS), 'videos.zip': zipped(VIDEOS)}  # a miniature UCF101

AWKWARD = (
    '#2_Gum_chew_h_nm_np1_fr_goo_0.avi', "a[1](2) {b};&!$x'`~=+,@_chew_h_nm_np1_fr_goo_1.avi",
    '-o_chew_u_cm_np1_ba_bad_0.avi')
CHEW, WAVE = ({f'{c}/{n}': f'{c} {n}'.encode()*50 for n in AWKWARD} for c in ('chew', 'wave'))


def hmdb_archives(pack):
    "A miniature HMDB51 of archives made by `pack`; that of the videos has one for each class"
    text = ''.join(f'{n} {tag} \n' for n, tag in zip(AWKWARD, '120')).encode()
    lists = {f'testTrainMulti_7030_splits/{c}_test_split{k}.txt': text for c in ('chew', 'wave') for k in (1, 2)}
    return {'lists.rar': pack(lists), 'videos.rar': pack({'chew.rar': pack(CHEW), 'wave.rar': pack(WAVE)})}


def tree(path): return {f.relative_to(path).as_posix():f.read_bytes() for f in path.rglob('*') if f.is_file()}
