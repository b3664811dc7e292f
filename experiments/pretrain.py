"""What does a video encoder learn without labels? The paper's first stage, by RSPNet and the methods it compares with.

    python experiments/pretrain.py --method rspnet               # on the source videos of the embedded task
    python experiments/pretrain.py --method pace --task videos:FOLDER --model r2plus1d
    python experiments/compare.py --init runs/pretrain/KEY/weights.safetensors --source-epochs 0

Hyper-parameters are those of each method's reference code, or for `moving_digits` (8 frames of 40x40) what fits it;
options replace them. Labels of a task are not used. Writes a folder for each setting to --out: weights.safetensors
(encoder and heads, read by `load_encoder` and `read_checkpoint`), for RSPNet also rspnet.pth.tar in its own layout,
epochs.csv and result.json. A run that was stopped resumes from its last finished epoch and ends with the same
weights."""
from sdfast.commands.pretrain import main

if __name__ == '__main__': main()
