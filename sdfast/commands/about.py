"""Facts for a bug report: `sdfast about` prints versions, devices, codecs and the names that sdfast knows.

A line says so if something is missing or broken. Nothing is downloaded, trained or written."""
import os
import platform
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

__all__ = ['about']

# codecs of UCF101, HMDB51, Kinetics, and of videos from phones and browsers
DECODERS = ['h264', 'hevc', 'av1', 'libdav1d', 'vp8', 'vp9', 'mpeg4', 'msmpeg4v3', 'mpeg1video', 'mpeg2video', 'wmv2',
            'wmv3', 'mjpeg', 'ffv1']
ENCODERS = ['mpeg4', 'libx264']  # codecs with which sdfast writes: moving_digits and prepared copies
OPTIONAL = ('pretext', 'peers', 'log')  # extras whose packages are listed


def about()->str:
    "Versions, devices, codecs and names, one a line; a line whose content cannot be determined says why"
    return '\n'.join(f'{name}: {_try(find)}' for name, find in LINES.items())


def _try(find:Callable)->str:
    "Return the result of `find()`, or the reason if it fails"
    try: return find()
    except Exception as e:
        first_line = next(iter(str(e).splitlines()), '')
        return f'unknown: {type(e).__name__}: {first_line}'


def _python():
    executable = _short(sys.executable)
    return f'{platform.python_version()} ({platform.python_implementation()}, {executable})'


def _short(path): return str(path).replace(str(Path.home()), '~', 1)


def _needed(): return _packages(())
def _optional(): return _packages(OPTIONAL)


def _packages(extras):
    "The packages that sdfast needs, or those of its extras"
    found = []
    for text in requires('sdfast') or []:
        requirement, _, condition = text.partition(';')
        wanted = any(f'"{e}"' in condition for e in extras) if extras else 'extra' not in condition
        if wanted: found.append(_package(requirement))
    return ', '.join(dict.fromkeys(found))


def _package(text):
    "Name and installed version; if that does not fit, also the version that sdfast requires"
    from packaging.requirements import Requirement
    requirement = Requirement(text)
    try: installed = version(requirement.name)
    except PackageNotFoundError: return f'{requirement.name} not installed'
    fits = requirement.specifier.contains(installed, prereleases=True)
    return f'{requirement.name} {installed}' + ('' if fits else f' (sdfast asks for {requirement.specifier})')


def _cpu():
    import torch
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{cores} cores of {os.cpu_count()}, {torch.get_num_threads()} threads ({platform.machine()})'


def _cuda():
    import torch
    if not torch.cuda.is_available(): return f'none (torch is built for {_torch_build(torch)})'
    devices = []
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        devices.append(f'{i}: {device.name}, {device.total_memory/2**30:.0f} GiB')
    return ', '.join(devices) + f' (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})'


def _torch_build(torch):
    if torch.version.cuda: return f'CUDA {torch.version.cuda}'
    return f'ROCm {torch.version.hip}' if torch.version.hip else 'CPUs'


def _mps():
    import torch
    return 'yes' if torch.backends.mps.is_available() else 'none'


def _ffmpeg():
    import av
    libraries = ('libavcodec', 'libavformat', 'libswscale')
    versions = [f'{n.removeprefix("lib")} {".".join(map(str, av.library_versions[n]))}'
                for n in libraries if n in av.library_versions]
    return ', '.join([av.ffmpeg_version_info, *versions])


def _decoders(): return _codecs(DECODERS, 'r')
def _encoders_of_video(): return _codecs(ENCODERS, 'w')


def _codecs(names, mode):
    "Which codecs PyAV has for reading, 'r', or writing, 'w'"
    there = [n for n in names if _has_codec(n, mode)]
    missing = [n for n in names if n not in there]
    return ', '.join(there) + (f'; without {", ".join(missing)}' if missing else '')


def _has_codec(name, mode):
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError
    try: return bool(Codec(name, mode))
    except UnknownCodecError: return False


def _home():
    from ..runtime.store import home
    where = home()
    if not where.is_dir(): return f'{_short(where)} (does not exist yet)'
    names = ', '.join(sorted(f.name for f in where.iterdir())) or 'empty'
    size = sum(f.stat().st_size for f in where.rglob('*') if f.is_file())
    return f'{_short(where)} ({names}; {size/2**20:.0f} MiB)'


def _tasks():
    from ..data.datasets import TASKS
    return ', '.join(TASKS)


def _encoders():
    import timm

    from ..models.encoders import ENCODERS
    from ..models.library_nets import video_names
    video = video_names()
    n_timm = len(timm.list_models())
    return f'{", ".join(ENCODERS)}; {len(video)} of torchvision ({", ".join(video)}); {n_timm} of timm'


def _strategies():
    from ..strategies.registry import STRATEGIES
    return ', '.join(STRATEGIES)


def _methods():
    from ..pretext.registry import METHODS
    return ', '.join(METHODS)


LINES = {
    'sdfast': lambda: version('sdfast'),
    'Python': _python,
    'platform': platform.platform,
    'packages': _needed,
    'optional packages': _optional,
    'CPU': _cpu,
    'CUDA': _cuda,
    'MPS': _mps,
    'FFmpeg in PyAV': _ffmpeg,
    'decoders': _decoders,
    'encoders of video': _encoders_of_video,
    'data and cache': _home,
    'tasks': _tasks,
    'encoders': _encoders,
    'strategies': _strategies,
    'pre-training': _methods,
}


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    print(about())
