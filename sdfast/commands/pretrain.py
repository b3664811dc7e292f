"""Pre-train a video encoder without labels: the paper's first stage, by RSPNet and the methods it compares with.

See experiments/pretrain.py for commands and for what is written."""
from pathlib import Path

from fastcore.script import call_parse

from ..study.pretrain import StageProgress, make_stage, pretrain, score_text
from .common import make_folder, one_line_errors


@call_parse  # runs at once in a script, so it comes last
def main(
    method:str='rspnet', # Method: rspnet, pace, order, puzzle, cvrl, iic or mas (motion and appearance statistics)
    task:str='moving_digits', # Videos: a task as in compare.py, or videos:FOLDER for any below a folder
    model:str='tiny', # tiny, the paper's c3d and r2plus1d, a video net of torchvision, or any image model of timm
    model_args:str='', # For the model's constructor, such as pad_type=same
    init:str=None, # Weights of the encoder to start from
    method_args:str=None, # For the method, such as paces=[1,2],restart=false
    epochs:int=None, # By default the reference's; 10 for moving_digits
    lr:float=None, # Learning rate of SGD with momentum .9
    schedule:str=None, # constant, thirds, fifths (IIC's), cosine, warm_cosine (CVRL's), epoch_cosine or steps
    wd:float=None, # L2 regularisation of all parameters
    bs:int=None, # Batch size
    frames:int=None, # Frames in a clip: 16, or what fits moving_digits
    stride:int=None, # Frames of the video from one of the clip to the next
    size:int=None, # Side of the square: 112, or 40 for moving_digits
    clips:int=0, # Of each class of a task to train on; 0: all
    seed:int=0, # Of weights, order, clips and augmentation
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    out:str='runs/pretrain', # Folder to write to; a setting that is finished there is not trained again
):
    "Pre-train a video encoder without labels"
    given = {k:v for k, v in locals().items() if k != 'out'}
    with one_line_errors('pretrain.py', out):
        stage, message = make_stage(**given)
        folder = make_folder(out)
        with StageProgress() as progress:
            progress.plan([])
            progress.say(message)
            result = pretrain(stage, folder, progress)
    progress.say('; '.join(map(score_text, result['scores'])) + f' ({result["valid"]} held-out videos)')
    progress.say(f'written to {Path(result["weights"]).parent}')
