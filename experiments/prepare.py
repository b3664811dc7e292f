"""Make small copies of a task's videos, which are decoded several times as fast.

    python experiments/prepare.py folder:videos             # to videos.prepared
    python experiments/prepare.py ucf101:data --jobs 16
    python experiments/compare.py --task ucf101:data ...    # uses the copies

Copies are H.264, upright, with the short side scaled to --size and a key frame at least every --gop frames. Each copy
is decoded again and compared with its original, frame by frame, before it gets its name. Existing copies are kept:
after an interruption the same command resumes. Commands that read the same task then use the copies and say so, and
their runs have other keys; with an empty `SDFAST_PREPARED=` they use the originals. If a video cannot be copied, it is
listed, and the original is used."""
from sdfast.commands.prepare import main

if __name__ == '__main__': main()
