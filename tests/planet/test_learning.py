"""PlaNet learns: a whole run, small enough for every check, whose agent must beat random actions.

The run and the ways to break it are in `miniature.py`. Mean return of 10 episodes minus that of random actions from
the same start states: 36.4 and 46.8 for seeds 0 and 1 (9 and 10 of 10 episodes at 73 or more). With seed 0 broken in
training and acting: the actions of another chunk 4.1, a posterior that never sees the picture 6.7. Broken only while
acting, with the weights of seed 0: pictures black, 7.6; the first iteration's plan, 25.8, which is not caught here
but by `test_cem.py` (seven of its tests fail). The other ways to break it have not been measured. About 55 processor
seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MINIATURE = Path(__file__).parent / "miniature.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@pytest.mark.slow
def test_a_trained_agent_beats_random_actions_from_the_same_start_states():
    done = subprocess.run(
        [sys.executable, str(MINIATURE), "--seed", "0"], capture_output=True, text=True, env=ENVIRONMENT, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert len(result["acted"]) == len(result["random"]) == 10
    assert np.mean(result["acted"]) - np.mean(result["random"]) > 18, result
