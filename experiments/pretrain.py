"""Pre-train a video encoder without labels, the paper's first stage, with RSPNet or a method that the paper cites.

    python experiments/pretrain.py --method rspnet               # on the source videos of moving_digits
    python experiments/pretrain.py --method pace --task videos:FOLDER --model r2plus1d
    python experiments/compare.py --init runs/pretrain/KEY/weights.safetensors --source-epochs 0

Hyper-parameters are those of each method's reference code, with others for `moving_digits` (8 frames of 40x40); options
override them. Labels of a task are not used. For each combination of settings, --out gets a folder with
weights.safetensors (encoder and heads, read by `load_encoder` and `read_checkpoint`), epochs.csv, result.json and, for
RSPNet, rspnet.pth.tar in the layout of its code. If it is stopped, the same command resumes after the last finished
epoch and ends with the same weights."""
from sdfast.commands.pretrain import main

if __name__ == '__main__': main()
