"""Can a task's videos be decoded several times as fast? Makes small copies of them.

    python experiments/prepare.py folder:videos             # to videos.prepared
    python experiments/prepare.py ucf101:data --jobs 16
    python experiments/compare.py --task ucf101:data ...    # uses the copies

Copies are H.264, upright, with the short side scaled to --size and a key frame at least every --gop frames. Each copy
is decoded again and compared with its original, frame by frame, before it gets its name. Existing copies stay: after
an interruption the same command resumes. Whatever reads the task by the same name then uses the copies, says so, and
gives its runs other keys; with an empty `SDFAST_PREPARED=` it uses the originals. A video that cannot be copied is
named, and its original is used."""
from sdfast.commands.prepare import main

if __name__ == '__main__': main()
