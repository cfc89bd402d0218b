"""For all tests, before anything is imported that reads the environment."""

import os

# Mesa's own threads do not help where tests share a few cores; read when the first GL context is made.
os.environ.setdefault("LP_NUM_THREADS", "0")
