"""Pre-train a video encoder without labels: the paper's first stage, by RSPNet and the methods that the paper compares with.

    python experiments/pretrain.py --method rspnet                     # on the source videos of the embedded task: see experiments/README.md for the time
    python experiments/pretrain.py --method pace --task videos:FOLDER --model r2plus1d
    python experiments/compare.py --init runs/pretrain/KEY/weights.safetensors --source-epochs 0      # then fine-tune what it wrote

Hyper-parameters are those of each method's reference code, or for `moving_digits` (8 frames of 40x40) what fits it; options replace them.
Labels of a task are not used. Writes to --out, in a folder for each setting: weights.safetensors (encoder, heads; `load_encoder` and
`read_checkpoint` read it), for RSPNet rspnet.pth.tar in its own layout, epochs.csv and result.json. A run that was stopped goes on from
its last finished epoch and ends with the same weights."""
import sys
from pathlib import Path

from fastcore.script import call_parse

from ..errors import InputError, StoreError
from ..study.pretrain import StageProgress, make_stage, pretrain, score_text


def _fail(message, status=2):
    print(f'pretrain.py: {message}', file=sys.stderr)
    return status


@call_parse  # runs at once in a script, so it comes last
def main(
    method:str='rspnet', # How: rspnet, pace, order (clip order prediction), puzzle (3D cubic puzzles), cvrl, iic (inter-intra contrast), mas (motion and appearance statistics)
    task:str='moving_digits', # Videos: a task as in compare.py (moving_digits, ucf101:PATH, ...), or videos:FOLDER for any below a folder
    model:str='tiny', # tiny, the paper's c3d and r2plus1d, a video net of torchvision, or any image model of timm
    model_args:str='', # For the model's constructor, such as pad_type=same
    init:str=None, # Weights of the encoder to start from
    method_args:str=None, # For the method, such as paces=[1,2],restart=false
    epochs:int=None, # By default the reference's; 10 for moving_digits
    lr:float=None, # SGD, momentum .9
    schedule:str=None, # constant, thirds (a tenth at each third), fifths (a fifth at four points, IIC's), cosine, warm_cosine, epoch_cosine or steps
    wd:float=None, # L2 regularisation of all parameters
    bs:int=None, # Batch size
    frames:int=None, # Frames in a clip: 16, or what fits moving_digits
    stride:int=None, # Frames between two of the clip
    size:int=None, # Side of the square: 112, or 40 for moving_digits
    clips:int=0, # Of each class of a task to train on; 0: all
    seed:int=0, # Of weights, order, clips and augmentation
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    out:str='runs/pretrain', # Folder to write to; a setting that is finished there is not done again
):
    "Pre-train a video encoder without labels"
    given = {k:v for k, v in locals().items() if k != 'out'}
    try:
        stage, say = make_stage(**given)
        out = Path(out)
        try: out.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
        with StageProgress() as progress:
            progress.plan([])
            progress.say(say)
            result = pretrain(stage, out, progress)
    except (InputError, StoreError) as e: sys.exit(_fail(str(e).split(':\n\t')[-1]))  # without what fastai puts in front
    except KeyboardInterrupt: sys.exit(_fail(f'stopped; finished epochs are in {out}, the same command goes on from there', 130))
    progress.say('; '.join(map(score_text, result['scores'])) + f' ({result["valid"]} held-out videos)')
    progress.say(f'written to {Path(result["weights"]).parent}')
