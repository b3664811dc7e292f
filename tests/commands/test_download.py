"Downloads that break off, change or end too late are whole in the end."
import os
import signal
import zlib
from dataclasses import replace

import pytest
from archives import UCF

from sdfast.commands import download as download_module


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
        m.setattr(download_module, 'sha256', lambda _: signal.raise_signal(signal.SIGINT))
        script.download(archive, tmp_path, host.url)
    assert script.download(archive, tmp_path, host.url).read_bytes() == UCF['videos.zip']
    assert host.asked == []
    (tmp_path/'videos.zip').rename(part)
    (tmp_path/'videos.zip.part.stamp').write_text(f'{2*n} "{zlib.crc32(UCF["videos.zip"])}"')
    assert script.download(archive, tmp_path, host.url).read_bytes() == UCF['videos.zip']
    assert [s for _, s in host.asked] == [f'bytes={n}-', None]
