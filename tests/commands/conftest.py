"Fixtures for downloading and unpacking: a host with small data sets, and programs that unpack."
import hashlib
import subprocess
import sys

import pytest
from archives import REAL, UCF, Host, hmdb_archives


@pytest.fixture
def host():
    host = Host()
    yield host
    host.go_on.set()
    host.shutdown()
    host.server_close()


@pytest.fixture
def script(monkeypatch, host):
    "The module get_data, with small data sets on `host`"
    from sdfast.commands import download, get_data
    monkeypatch.setattr(download, 'WAITS', (0, 0))
    monkeypatch.setattr(download, 'TIMEOUT', 5)
    monkeypatch.setattr(get_data, 'DATASETS', {})
    def small(files, folders, counts):
        archives = []
        for (name, data), folder in zip(files.items(), folders):
            archives.append(download.Archive(name, folder, 30_000, 30_000, hashlib.sha256(data).hexdigest()))
        return get_data.DataSet(host.url, *archives, counts)
    def hmdb(pack):
        host.files = hmdb_archives(pack)
        get_data.DATASETS['hmdb51'] = small(host.files, ('testTrainMulti_7030_splits', 'hmdb51'), (2, 6, 2, 2))
    monkeypatch.setattr(get_data, 'hmdb', hmdb, raising=False)
    get_data.DATASETS['ucf101'] = small(UCF, ('ucfTrainTestlist', 'UCF-101'), (2, 8, 5, 3))
    host.files = dict(UCF)
    return get_data


@pytest.fixture
def path(tmp_path, monkeypatch):
    "A function that makes programs the only ones in PATH: those of this machine by name, or name and Python code"
    folder = tmp_path/'bin'
    folder.mkdir()
    monkeypatch.setenv('PATH', str(folder))
    def path(name, code=None):
        file = folder/name
        if code is not None:
            file.write_text(f'#!{sys.executable}\n{code}\n')
            file.chmod(0o755)
            return
        if not REAL[name]: pytest.skip(f'{name} is not installed')
        if name[0] == '7':
            formats = subprocess.run([REAL[name], 'i'], capture_output=True, text=True).stdout
            if 'Rar' not in formats: pytest.skip(f'this {name} is built without rar')
        file.symlink_to(REAL[name])
    return path
