"""Pre-train a video encoder without labels: the paper's first stage, by RSPNet and the methods that the paper compares with.

    python experiments/pretrain.py --method rspnet                     # on the source videos of the embedded task: see experiments/README.md for the time
    python experiments/pretrain.py --method pace --task videos:FOLDER --model r2plus1d
    python experiments/compare.py --init runs/pretrain/KEY/weights.safetensors --source-epochs 0      # then fine-tune what it wrote

Hyper-parameters are those of each method's reference code, or for `moving_digits` (8 frames of 40x40) what fits it; options replace them.
Labels of a task are not used. Writes to --out, in a folder for each setting: weights.safetensors (encoder, heads; `load_encoder` and
`read_checkpoint` read it), for RSPNet rspnet.pth.tar in its own layout, epochs.csv and result.json. A run that was stopped goes on from
its last finished epoch and ends with the same weights."""
from sdfast.commands.pretrain import main

if __name__ == '__main__': main()
