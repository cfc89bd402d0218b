"""A stand-in for `planet.train`, for tests of the sweep: same files, lease, signals and exit codes; learns nothing.

`python fake_train.py RUN_DIR`. A file `behave` in the directory says what shall go wrong.
"""

import atexit
import os
import signal
import sys
import time
from pathlib import Path

from planet.lease import Lease, LeaseHeld
from planet.run_dir import Recorder, RunDir
from planet.stop_signal import EXIT_DONE, EXIT_FAILED, EXIT_HELD, EXIT_STOPPED, StopSignal

EPISODES = 5


def main(path: Path) -> int:
    behave = (path / "behave").read_text() if (path / "behave").exists() else ""
    if behave == "no_import":
        print("Traceback (most recent call last):\nImportError: no module named dm_control")
        return 1
    run = RunDir.open(path)
    if (run.status() or {}).get("state") == "done":
        return EXIT_DONE
    try:
        lease = Lease.acquire(path)
    except LeaseHeld as error:
        print(error)
        return EXIT_HELD
    with lease, Recorder(run, lease) as recorder, StopSignal() as stop:
        run.record_start(device="cpu")
        saved = run.checkpoints / "latest.pt"
        run.checkpoints.mkdir(exist_ok=True)
        first = int(saved.read_text()) if saved.exists() else 0
        print(
            f"from {first}, threads {os.environ.get('OMP_NUM_THREADS')}, gpu {os.environ.get('CUDA_VISIBLE_DEVICES')}"
        )
        for episode in range(first, EPISODES):
            recorder.write_status(state="running", episode=episode, episodes_total=EPISODES, error=None, traceback=None)
            if behave in ("fail", "fail_and_abort") and episode == 2:
                if behave == "fail_and_abort":  # as a CUDA context that an illegal access has spoilt
                    atexit.register(os.abort)
                recorder.write_status(state="failed", error="ValueError: loss became NaN", traceback="Traceback ...")
                return EXIT_FAILED
            if behave == "die" and episode == 2 and not (path / "died").exists():
                (path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if behave == "always_die" and episode == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(30 if behave == "stuck" else 0.3 if behave == "slow" else 0.01)
            saved.write_text(str(episode + 1))
            if behave == "die_each_time" and episode < EPISODES - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if stop.requested:
                recorder.write_status(state="stopped", episode=episode + 1)
                return EXIT_STOPPED
        recorder.write_status(state="done", episode=EPISODES, wall_seconds=1.0, last_eval=7.0)
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
