"""Pre-train a video encoder, the paper's first stage, with RSPNet or a method that the paper cites; without labels,
except for `supervised`.

    sdfast pretrain --method rspnet
    sdfast pretrain --task videos:FOLDER --model r2plus1d --method pace    # all videos below a folder

The folder --out gets a folder for each setting: weights.safetensors, epochs.csv, result.json; for RSPNet also
rspnet.pth.tar in its own layout."""
from pathlib import Path

from fastcore.script import call_parse

from ..runtime.program import program
from ..study.pretrain import StageProgress, make_stage, pretrain, score_text
from .common import make_folder, one_line_errors


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    method:str='rspnet', # rspnet, pace, order, puzzle, cvrl, iic, mas, memdpc, hdc, cycle, dogo or supervised (labels)
    task:str='moving_digits', # Videos: a task as for sdfast compare, or videos:FOLDER for all videos below a folder
    model:str='tiny', # tiny, the paper's c3d and r2plus1d, a video net of torchvision, or any image model of timm
    model_args:str='', # For the model's constructor, such as pad_type=same
    init:str=None, # Weights of the encoder to start from
    method_args:str=None, # For the method, such as paces=[1,2],restart=false
    epochs:int=None, # Epochs, by default those of the method's reference code; 10 for moving_digits
    lr:float=None, # Learning rate
    opt:str=None, # Optimizer: sgd or adam, by default that of the method's reference code
    mom:float=None, # Momentum of SGD, or the first of Adam's decays; by default .9
    grad_clip:float=None, # Largest norm of all gradients together; 0: any
    schedule:str=None, # constant, thirds, late_tenth, fifths (IIC's), cosine, warm_cosine (CVRL's), epoch_cosine, steps
    wd:float=None, # L2 regularisation of all parameters
    bs:int=None, # Batch size
    frames:int=None, # Frames in a clip, by default 16; fewer for moving_digits
    stride:int=None, # Frames of the video from one frame of the clip to the next
    size:int=None, # Side of the square in pixels, by default 112; 40 for moving_digits
    clips:int=0, # Number of videos of each class to train on; 0: all
    seed:int=0, # Random seed of weights, order, clips and augmentation
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    out:str='runs/pretrain', # Folder to write to; a finished encoder with the same settings is not trained again
):
    "Pre-train a video encoder without labels"
    given = {k:v for k, v in locals().items() if k != 'out'}
    with one_line_errors(program('pretrain'), out):
        stage, message = make_stage(**given)
        folder = make_folder(out)
        with StageProgress() as progress:
            progress.plan([])
            progress.say(message)
            result = pretrain(stage, folder, progress)
    progress.say('; '.join(map(score_text, result['scores'])))
    progress.say(f'written to {Path(result["weights"]).parent}')
