"""Pre-train a video encoder without labels.

Options and files are described in sdfast/commands/pretrain.py.

    python experiments/pretrain.py --method rspnet"""
from sdfast.commands.start import run

if __name__ == '__main__': run('pretrain')
