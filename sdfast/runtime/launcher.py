"The choice of where work is done: in this process, in workers on this machine, or in jobs of Slurm."
import shutil
from importlib.util import find_spec

import torch.distributed as dist
from fastai.torch_core import num_distrib

from ..errors import InputError
from .options import parse_options

__all__ = ['Launcher']

LAUNCHERS = ('local', 'slurm')
# options of --slurm: name -> (submitit's name for it, type)
SLURM_OPTIONS = dict(
    partition=('slurm_partition', str), time=('timeout_min', int), gpus=('gpus_per_node', int),
    cpus=('cpus_per_task', int), mem=('mem_gb', float), account=('slurm_account', str), qos=('slurm_qos', str),
    constraint=('slurm_constraint', str), exclude=('slurm_exclude', str), nodelist=('slurm_nodelist', str))
SLURM_POLL = 2.  # minimum seconds between two calls of squeue


def _slurm_options(text):
    "`name=value,...` as arguments of submitit's executor"
    options = {}
    for name, value in parse_options(text, '--slurm').items():
        if name not in SLURM_OPTIONS or value in ('', None):
            raise InputError(f'--slurm must be name=value,... of {", ".join(SLURM_OPTIONS)}, not {name!r}')
        key, kind = SLURM_OPTIONS[name]
        if kind is not str and (isinstance(value, bool) or not isinstance(value, (int, kind))):
            raise InputError(f'--slurm: {name} must be a number, not {value!r}')
        options[key] = kind(value)
    return options


def has_submitit()->bool:
    "Whether workers can be started: submitit is in the extra `cluster`"
    return find_spec('submitit') is not None


class Launcher:
    "Where work is done, and by how many workers"
    def __init__(self,
        jobs:int=1, # Worker processes
        cluster:str='', # 'local' or 'slurm'; '': this process for one job, else 'local'
        options:str='', # For Slurm, `name=value,...`: partition, time (minutes), gpus, cpus, mem (GB), account, ...
        poll:float=.5, # Seconds between two checks for results
    ):
        if jobs < 1: raise InputError(f'--jobs must be at least 1, not {jobs}')
        if cluster and cluster not in LAUNCHERS:
            raise InputError(f'--launcher must be {" or ".join(LAUNCHERS)}, not {cluster!r}')
        if options.strip(', ') and cluster != 'slurm': raise InputError('--slurm is for --launcher slurm')
        self.options = _slurm_options(options)
        if cluster == 'slurm' and not shutil.which('sbatch'):
            raise InputError('--launcher slurm needs Slurm: there is no sbatch on this machine')
        if num_distrib() > 1:
            if not dist.is_initialized():
                raise InputError('this script cannot run under torchrun; compare.py and sequence.py can')
            if jobs > 1 or cluster:
                raise InputError('under torchrun all processes work on one run: --jobs and --launcher cannot be set')
        self.jobs = jobs
        self.cluster = cluster or ('local' if jobs > 1 else '')
        if self.cluster and not has_submitit():
            raise InputError("--jobs and --launcher need the package submitit: pip install 'sdfast[cluster]'")
        self.poll = max(poll, SLURM_POLL) if cluster == 'slurm' else poll

    @property
    def inside(self)->bool:
        "Whether all work is done in this process"
        return not self.cluster
