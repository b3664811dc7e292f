"""Download the videos and official lists of UCF101 and HMDB51 from their official hosts.

    python experiments/get_data.py ucf101 --to data    # 6.9 GB, and 14 GB of disk until the archive is deleted
    python experiments/get_data.py hmdb51 --to data    # 2.1 GB and 4.5 GB
    python experiments/compare.py --task ucf101:data ...

Files that exist are not downloaded again: after an interruption the same command resumes. If you have an archive
already, put it into --to under its original name. Unpacking rar archives needs unrar, unar, 7z or bsdtar."""
from sdfast.commands.get_data import main

if __name__ == '__main__': main()
