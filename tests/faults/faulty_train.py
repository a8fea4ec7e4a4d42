"""train.py with a fault: KIND:RANK:STEP, then its own arguments. The fault happens in the first life of
that rank only.

hang  the rank sleeps before the step      kill  it dies by signal 9      die  it ends with an exception
"""

import os
import signal
import sys
import time
from functools import partial

sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))
import train
from training.optim import learning_rate_at
from training.world import exit_with

kind, rank, at = sys.argv.pop(1).split(":")


def schedule(step: int, config: object) -> float:
    if os.environ["RANK"] == rank and step == int(at) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if kind == "hang":
            time.sleep(10_000)
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("device lost")
    return learning_rate_at(step, config)


exit_with(partial(train.main, schedule=schedule), sys.argv[1:])
