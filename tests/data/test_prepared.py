"Copies are compared with their originals."
import pytest

from sdfast.data import prepared as prepared_module
from sdfast.data.prepared import make_copy
from sdfast.errors import InputError


def test_a_copy_that_is_not_like_its_original_gets_no_name(clips, tmp_path, monkeypatch):
    path, encode = min(clips.rglob('*.mp4')), prepared_module.encode_copy
    for spoil, why in [(lambda x: x[:-1], '11 frames instead of 12'), (lambda x: x[::-1], 'off by')]:
        to = tmp_path/f'{why}.mp4'
        monkeypatch.setattr(prepared_module, 'encode_copy', lambda p, x, *args, spoil=spoil: encode(p, spoil(x), *args))
        with pytest.raises(InputError, match=why): make_copy(str(path), to, 32, 4, 18)
        assert not to.exists()
        assert not list(tmp_path.glob('*.tmp'))
    monkeypatch.setattr(prepared_module, 'encode_copy', lambda p, x, gop, quality: encode(p, x, 12, quality))
    with pytest.raises(InputError, match='no key frame every 4 frames'):
        make_copy(str(path), tmp_path/'keys.mp4', 32, 4, 18)
