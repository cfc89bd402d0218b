import os
import signal
import subprocess
import sys

import pytest

from planet.stop_signal import EXIT_STOPPED, StopSignal

WORKER = """
import sys, time
from planet.stop_signal import EXIT_STOPPED, StopSignal
stop = StopSignal().install()
print("ready", flush=True)
deadline = time.monotonic() + 30
while not stop.requested and time.monotonic() < deadline:
    time.sleep(0.01)
print("saving", stop.requested, flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(EXIT_STOPPED)
"""


def start(saving_seconds):
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(saving_seconds)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    return worker, worker.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_lets_the_run_save_and_stop(number):
    worker, output = start(0)
    worker.send_signal(number)

    assert output.read() == f"saving {number.name}\n"
    output.close()
    assert worker.wait() == EXIT_STOPPED == 75


def test_a_second_interrupt_ends_the_process_at_once():
    worker, output = start(30)
    worker.send_signal(signal.SIGINT)
    assert output.readline() == "saving SIGINT\n"
    worker.send_signal(signal.SIGINT)

    assert worker.wait(timeout=10) == -signal.SIGINT
    output.close()


def test_a_user_signal_after_another_does_not_disturb_the_saving():
    worker, output = start(0.3)
    worker.send_signal(signal.SIGUSR2)
    assert output.readline() == "saving SIGUSR2\n"
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGUSR2)

    assert worker.wait(timeout=10) == EXIT_STOPPED
    output.close()


def test_the_handlers_before_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.requested == "SIGUSR2"

    assert {number: signal.getsignal(number) for number in before} == before
