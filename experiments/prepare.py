"""Small copies of a task's videos, from which a clip is decoded several times as fast.

    python experiments/prepare.py folder:videos             # to videos.prepared
    python experiments/prepare.py ucf101:data --jobs 16
    python experiments/compare.py --task ucf101:data ...    # uses them

H.264, upright, the short side scaled to --size, a key frame at least every --gop frames. Each copy is decoded again and compared with its original,
frame by frame, before it gets its name. Copies that are there already stay: after a break the same command goes on. Whatever reads the task by the same
name then uses the copies, says so, and has other keys for its runs; with `SDFAST_PREPARED=` set to nothing it uses the originals. A video that
cannot be copied is named, and is used as it is."""
from sdfast.commands.prepare import main

if __name__ == '__main__': main()
