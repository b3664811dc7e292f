"""Download the videos and official lists of UCF101 and HMDB51.

Options and files are described in sdfast/commands/get_data.py.

    python experiments/get_data.py ucf101 --to data"""
from sdfast.commands.start import run

if __name__ == '__main__': run('get_data')
