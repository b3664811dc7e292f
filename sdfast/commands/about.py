"""What a bug report needs: `python -m sdfast` prints versions, devices, codecs and what sdfast knows by name.

It ends well whatever is missing or broken, and says what that is. Nothing is downloaded, trained or written."""
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

# those of UCF101, HMDB51, Kinetics and what phones and browsers write; sdfast itself writes mpeg4 (moving_digits) and h264 (prepared copies)
DECODERS = 'h264 hevc av1 libdav1d vp8 vp9 mpeg4 msmpeg4v3 mpeg1video mpeg2video wmv2 wmv3 mjpeg ffv1'.split()
ENCODERS = 'mpeg4 libx264'.split()


def _said(f)->str:
    "What `f()` says, or why it cannot"
    try: return f()
    except Exception as e: return f'not to be told: {type(e).__name__}: {(str(e).splitlines() or [""])[0]}'


def _package(text):
    "Name, installed version and, where it is another, the version that sdfast asks for"
    from packaging.requirements import Requirement
    r = Requirement(text)
    try: v = version(r.name)
    except PackageNotFoundError: return f'{r.name} not installed'
    return f'{r.name} {v}' + ('' if r.specifier.contains(v, prereleases=True) else f' (sdfast asks for {r.specifier})')


def _packages(extras):
    "Those that sdfast needs, or those of its extras"
    asked = [r.partition(';') for r in requires('sdfast') or []]
    return ', '.join(dict.fromkeys(_package(r) for r, _, when in asked if (any(f'"{e}"' in when for e in extras) if extras else 'extra' not in when)))


def _ffmpeg():
    import av
    return f'{av.ffmpeg_version_info}, ' + ', '.join(f'{n.removeprefix("lib")} {".".join(map(str, v))}' for n, v in av.library_versions.items() if n in ('libavcodec', 'libavformat', 'libswscale'))


def _codecs(names, mode):
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError
    def has(n):
        try: return bool(Codec(n, mode))
        except UnknownCodecError: return False
    have = [n for n in names if has(n)]
    return ', '.join(have) + (f'; without {", ".join(n for n in names if n not in have)}' if len(have) < len(names) else '')


def _cpu():
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{cores} cores of {os.cpu_count()}, {torch.get_num_threads()} threads ({platform.machine()})'


def _cuda():
    import torch
    if not torch.cuda.is_available(): return f'none (torch is built for {"CUDA " + torch.version.cuda if torch.version.cuda else "ROCm " + torch.version.hip if torch.version.hip else "CPUs"})'
    return ', '.join(f'{i}: {(p := torch.cuda.get_device_properties(i)).name}, {p.total_memory/2**30:.0f} GiB' for i in range(torch.cuda.device_count())) + f' (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})'


def _mps():
    import torch
    return 'yes' if torch.backends.mps.is_available() else 'none'


def _home():
    from ..runtime.store import home
    where = home()
    def size(): return sum(f.stat().st_size for f in where.rglob('*') if f.is_file())/2**20
    return f'{str(where).replace(str(Path.home()), "~", 1)} ' + (f'({", ".join(sorted(f.name for f in where.iterdir())) or "empty"}; {size():.0f} MiB)' if where.is_dir() else '(not there yet)')


def _tasks():
    from ..data.datasets import TASKS
    return ', '.join(TASKS)


def _encoders():
    import timm

    from ..models.encoders import ENCODERS as NETS
    from ..models.encoders import torchvision_names
    return f'{", ".join(NETS)}; {len(names := torchvision_names())} of torchvision ({", ".join(names)}); {len(timm.list_models())} of timm'


def _strategies():
    from ..strategies.registry import STRATEGIES
    return ', '.join(STRATEGIES)


def _methods():
    from ..pretext.registry import METHODS
    return ', '.join(METHODS)


def about()->str:
    "Versions, devices, codecs and names, a line each; what cannot be told says why"
    rows = {'sdfast': lambda: version('sdfast'), 'Python': lambda: f'{platform.python_version()} ({platform.python_implementation()}, {sys.executable.replace(str(Path.home()), "~", 1)})', 'platform': platform.platform,
            'packages': lambda: _packages(()), 'optional packages': lambda: _packages(('pretext', 'peers', 'log')), 'CPU': _cpu, 'CUDA': _cuda, 'MPS': _mps, 'FFmpeg in PyAV': _ffmpeg,
            'decoders': lambda: _codecs(DECODERS, 'r'), 'encoders of video': lambda: _codecs(ENCODERS, 'w'), 'data and cache': _home, 'tasks': _tasks, 'encoders': _encoders, 'strategies': _strategies,
            'pre-training': _methods}
    return '\n'.join(f'{name}: {_said(f)}' for name, f in rows.items())
