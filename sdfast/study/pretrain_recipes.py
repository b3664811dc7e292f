"Settings and schedules of pre-training: those of each method's reference code, and others for `moving_digits`."
import math
from collections.abc import Callable

from ..errors import InputError
from .fit import learning_rates

__all__ = ['recipe', 'stage_rates']

# From each method's reference code. RSPNet's lr is .05 for R(2+1)D, and both of its rates scale with (global batch)/64.
# Of the puzzle's settings only the size of the pieces is published; the others are ours. MemDPC's are those of UCF101,
# where each of two GPUs contrasts 16 videos. HDC has no public code: all of its settings are ours. So is DoGo's number
# of epochs: its template has 3. `supervised` has the settings of the source stage of a study.
RECIPES = dict(
    rspnet=dict(epochs=200, bs=64, lr=.1, wd=1e-4, schedule='epoch_cosine'),
    pace=dict(epochs=18, bs=30, lr=1e-3, wd=5e-3, schedule='thirds'),
    order=dict(epochs=300, bs=8, lr=1e-3, wd=5e-4, schedule='constant'),
    puzzle=dict(epochs=18, bs=30, lr=.01, wd=5e-4, schedule='thirds', size=80),
    cvrl=dict(epochs=200, bs=1024, lr=.32, wd=1e-6, schedule='warm_cosine', stride=2, size=224),
    iic=dict(epochs=240, bs=16, lr=.01, wd=1e-4, schedule='fifths'),
    mas=dict(epochs=18, bs=30, lr=5e-4, wd=5e-3, schedule='thirds'),
    memdpc=dict(epochs=500, bs=16, lr=1e-3, wd=1e-5, schedule='late_tenth', frames=5, stride=3, size=128, opt='adam'),
    hdc=dict(epochs=200, bs=64, lr=.03, wd=1e-4, schedule='cosine'),
    cycle=dict(epochs=30, bs=36, lr=2e-4, wd=0., schedule='constant', frames=1, stride=2, size=240, opt='adam', mom=.5,
               grad_clip=10.),
    supervised=dict(epochs=6, bs=32, lr=.1, wd=0., schedule='cosine'),
    dogo=dict(epochs=200, bs=256, lr=3e-4, wd=1e-6, schedule='constant', opt='adam'),
)
PAPER = dict(frames=16, stride=1, size=112, method_args='')  # the paper's clips, the default of all recipes

# For videos of 8 frames: the clips are short, so that a video has room for other speeds, or for several clips with a
# gap. RSPNet's clips of 3 frames span 6 at double speed, so query and positive key can start at different frames; with
# 4 frames they would be equal. Its queue is shorter than an epoch. The digits are grey: jitter of saturation and hue
# would have no effect but take half of the time.
SHORT = dict(
    rspnet=dict(frames=3, method_args='queue=1024,momentum=.99,jitter=[.4,.4,0,0],grey=0'),
    pace=dict(frames=4, method_args='paces=[1,2],restart=false,jitter=[.8,.8,0,0]'),
    order=dict(frames=2, method_args='gap=1'),
    puzzle=dict(frames=2, size=20, method_args='span=1,replicate=0,hidden=128'),
    cvrl=dict(frames=4, method_args='layers=1,hidden=128,jitter=[.4,.4,0,0],grey=0,blur=[0,0],solarise=[0,0]'),
    iic=dict(frames=6, method_args='negatives=128,unit=true'),
    mas=dict(frames=6, lr=.005, method_args=''),
    memdpc=dict(frames=2, method_args='blocks=4,steps=2,slots=128,jitter=[.4,.4,0,0],grey=0', lr=1e-3, wd=1e-5,
                bs=16, opt='adam'),
    hdc=dict(frames=4, method_args='jitter=[.4,.4,0,0],grey=0,blur=0'),
    cycle=dict(frames=1, size=72, method_args='steps=3,ahead=1', lr=1e-3, wd=0., opt='adam', mom=.5, grad_clip=10.),
    supervised=dict(frames=8, bs=32, lr=.1, wd=0., method_args=''),
    dogo=dict(frames=4, method_args='hidden=128,jitter=[.4,.4,0,0],grey=0,blur=0', lr=1e-3, wd=1e-6, opt='adam'),
)
DIGITS = dict(stride=1, size=40, epochs=10, bs=64, lr=.05, wd=1e-4, schedule='cosine')  # all methods on the digits

# epochs, of 240, at which IIC multiplies its learning rate by .2
FIFTHS_AT = 45, 90, 125, 160
# share of training in which CVRL's learning rate rises, as steps/steps
WARM_UP = 1787/71488


def recipe(
    method:str, # One of `METHODS`, or 'supervised'
    digits:bool, # On `moving_digits`, not on other videos
)->dict: # Fields of a `Stage`
    "Default settings of a method"
    return DIGITS | SHORT[method] if digits else PAPER | RECIPES[method]


def stage_rates(
    schedule:str, # constant, thirds, late_tenth, fifths, warm_cosine, or one of `learning_rates`
    lr:float, # Learning rate at the start, or after warming up
    epochs:int, # Of the stage
)->Callable: # Function of the completed share of training, from 0 to 1, that returns the learning rate
    "Learning rate of a stage over time; raises `InputError` for an unknown schedule"
    def thirds(pos): return lr*.1**int(3*pos + 1e-6)
    def late_tenth(pos): return lr*.1**(pos >= .6 - 1e-6)
    def fifths(pos): return lr*.2**sum(pos*240 > epoch - 1e-3 for epoch in FIFTHS_AT)
    def warm_cosine(pos): return lr*min(pos/WARM_UP, 1)*(1 + math.cos(math.pi*pos))/2
    schedules = dict(constant=lambda pos: lr, thirds=thirds, late_tenth=late_tenth, fifths=fifths,
                     warm_cosine=warm_cosine)
    if schedule in schedules: return schedules[schedule]
    try: return learning_rates(schedule, lr, epochs)
    except InputError:
        raise InputError(f'unknown schedule {schedule!r}; known are constant, thirds, late_tenth, fifths, cosine, '
                         'warm_cosine, epoch_cosine and steps') from None
