"""Signals that are heard where the main thread does not respond."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, time
from hashlib import pbkdf2_hmac
from batchfile.signals import hearing

def say(*words):
    os.write(1, " ".join([*map(str, words), "\\n"]).encode())  # whole lines, from two threads

def end(number):
    say("ended by", number)
    os._exit(7)

def patience_s(num):
    say("heard", num)
    return {patience}

with hearing(lambda number, frame: say("handled"), patience_s, end):
    say("there")
    {work}
say("over")
"""
BLOCKED = "pbkdf2_hmac('sha512', b'', b'', 2**31 - 1)"
RESPONDS = "time.sleep(0.5)"


def said(work: str, patience: str, *numbers: int) -> tuple[int, list[str]]:
    program = PROGRAM.format(work=work, patience=patience)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip()]
    for num, number in enumerate(numbers, 1):
        process.send_signal(number)
        while f"heard {num}" not in lines:
            lines.append(process.stdout.readline().strip())
    lines += [line.strip() for line in process.stdout]
    process.stdout.close()
    # Before the main thread blocks it may handle a signal after all.
    return process.wait(60), [line for line in lines if line != "handled" or work == RESPONDS]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_main_thread_that_does_not_respond_is_ended(number: int) -> None:
    assert said(BLOCKED, "0.1", number) == (7, ["there", "heard 1", f"ended by {int(number)}"])


def test_a_second_signal_shortens_the_time_and_never_lengthens_it() -> None:
    code, lines = said(BLOCKED, "(0, 600, 0.1, 600)[num]", signal.SIGTERM, signal.SIGINT)
    assert (code, lines) == (7, ["there", "heard 1", "heard 2", "ended by 2"])


def test_a_main_thread_that_responds_is_left_alone_and_the_handlers_are_as_before() -> None:
    code, lines = said(RESPONDS, "600", signal.SIGTERM)
    assert code == 0
    assert sorted(lines) == ["handled", "heard 1", "over", "there"]
    assert lines[-1] == "over"
