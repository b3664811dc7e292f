"Largest sizes that settings may have: what is larger cannot be meant, and would fail only after a long time."

__all__ = ['MAX_FRAMES', 'MAX_SIZE', 'MAX_COUNT', 'MAX_REPEATS', 'MAX_PROCESSES']

MAX_FRAMES = 1024  # frames in a clip, or from one frame of a clip to the next, or clips of a video
MAX_SIZE = 4096  # side of a clip in pixels
MAX_COUNT = 100_000  # epochs, clips in a batch
MAX_REPEATS = 1000  # seeds, trials
MAX_PROCESSES = 10_000  # workers, loading processes, processes that train together
