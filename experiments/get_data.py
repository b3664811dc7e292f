"""UCF101 and HMDB51, videos and official lists, from their official hosts.

    python experiments/get_data.py ucf101 --to data    # 6.9 GB, and 14 GB of disk until the archive is deleted
    python experiments/get_data.py hmdb51 --to data    # 2.1 GB and 4.5 GB
    python experiments/compare.py --task ucf101:data ...

What is there already is not done again: after a break, a Ctrl-C or a kill the same command goes on from there. An archive that
you put into --to under its own name is used instead of downloading it. rar archives need unrar, unar, 7z or bsdtar."""
from sdfast.commands.get_data import main

if __name__ == '__main__': main()
