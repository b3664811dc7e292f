"Work on many files at once."
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ['map_in_threads']

WAITING = 1024  # calls that wait at a time: each takes kilobytes


def map_in_threads(
    f:Callable, # Called with each item, from several threads
    items:Iterable, # Such as paths
)->Iterator[Any]: # Results in the order of the items
    "Call a function for all items"
    items = list(items)
    with ThreadPoolExecutor() as pool:
        for i in range(0, len(items), WAITING): yield from pool.map(f, items[i:i + WAITING])
