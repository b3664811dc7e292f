"Unpack zip and rar archives: regular files only, inside their folder only, and completely or not at all."
import os
import shutil
import stat
import subprocess
import zipfile
import zlib
from pathlib import Path

from rich.filesize import decimal

from ..errors import InputError
from .console import console, say
from .download import RESUMES

__all__ = ['unpack', 'installed_unpackers']

SEVEN_ZIP = ['x', '-y', '-bd']
# Programs that read rar archives, with their options
UNPACKERS = {
    'unrar': ['x', '-y', '-idq'], 'unar': ['-quiet', '-force-overwrite', '-no-directory'], '7z': SEVEN_ZIP,
    '7zz': SEVEN_ZIP, 'bsdtar': ['-xf']}


def unpack(
    file:Path, # A zip or rar archive; archives in it are unpacked, too
    folder:Path, # Folder to create; if the archive has a folder of this name, its content goes there
)->None:
    "Unpack an archive. The folder gets its name only when it is complete"
    say(f'unpacking {file.name}')
    tmp = folder.with_name(f'{folder.name}.unpacking')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        with console.status(file.name) as status:
            if file.suffix == '.zip': unzip(file, tmp)
            else: unrar(file, tmp)
            for inner in _rar_files(tmp):
                status.update(inner.name)
                unrar(inner, tmp)
                inner.unlink()  # at once, so that the disk never holds all of them twice
        top = tmp/folder.name
        (top if top.is_dir() else tmp).rename(folder)
    finally: shutil.rmtree(tmp, ignore_errors=True)


def _rar_files(folder):
    return [Path(d, name) for d, _, names in os.walk(folder) for name in names if name.endswith('.rar')]


def unzip(file:Path, folder:Path)->None:
    "Unpack a zip archive"
    try:
        with zipfile.ZipFile(file) as z:
            for name in z.namelist():
                inside = (folder/name).resolve().is_relative_to(folder.resolve())
                if not inside: raise InputError(f'{file} would write outside its folder: {name}')
            needed = sum(member.file_size for member in z.infolist())
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise InputError(f'{file} would become {decimal(needed)}, and {folder.parent} has {decimal(free)} free')
            z.extractall(folder)
    # `RuntimeError`: the archive is encrypted or of an unknown kind
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as e:
        again = 'delete it, and the same command downloads it again'
        raise InputError(f'{file} cannot be unpacked ({e}): {again}') from None


def installed_unpackers()->dict[str, str]: # Name -> path
    "Programs on this machine that read rar archives. Raises `InputError` without any"
    paths = {tool:shutil.which(tool) for tool in UNPACKERS}
    found = {tool:path for tool, path in paths.items() if path}
    if not found:
        raise InputError(f'rar archives need one of {", ".join(UNPACKERS)}, and none is installed: for example '
                         f'`apt install unar` or `brew install unar`; what is downloaded is kept, {RESUMES}')
    return found


def unrar(file:Path, folder:Path)->None:
    "Unpack a rar archive with the first program that succeeds: some cannot read every kind of rar"
    errors = []
    for tool, path in installed_unpackers().items():
        # run in the folder, with a relative name, because some programs take [ ] * in a path for wildcards
        command = [path, *UNPACKERS[tool], os.path.relpath(file, folder)]
        ran = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
        check_only_files(folder, file)  # after a failure, too, as the next program overwrites what is left
        if not ran.returncode: return
        lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines()]
        last = [f'status {ran.returncode}', *filter(None, lines)][-1]
        errors.append(f'{tool}: {last}')
    raise InputError(f'{file} cannot be unpacked ({"; ".join(errors)}): '
                     f'install another of {", ".join(UNPACKERS)}; {RESUMES}')


def check_only_files(folder:Path, file:Path)->None:
    "Raise `InputError` for links and devices: unpacking the next archive over a link would write to its target"
    for d, dirs, names in os.walk(folder):
        for name in (*dirs, *names):
            path = Path(d, name)
            info = path.lstat()
            is_file = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
            if is_file or stat.S_ISDIR(info.st_mode): continue
            raise InputError(f'{file} contains a link or a device, {path.relative_to(folder)}, '
                             'and is not one of these data sets')
