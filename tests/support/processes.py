"A function in a process of its own, for tests of its memory and of what hangs or dies."
import json
import os
import signal
import traceback
from pathlib import Path

import pytest

linux = pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='reads /proc')


def alone(function, *args, limit=240):
    "What a function returns in a forked process, which is killed after `limit` seconds"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(limit)
            os.close(r)
            with os.fdopen(w, 'w') as out: json.dump(function(*args), out)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(99)
    os.close(w)
    with os.fdopen(r) as found: text = found.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert not code, f'{function.__name__}{args}: exit status {code}'
    return json.loads(text)
