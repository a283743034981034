"""A disk that fills up while requests are generated: said once, ended, and continued with the same command."""

import json
import os
import subprocess
import sys
from pathlib import Path

NUM_REQUESTS = 300
COMMAND = [sys.executable, "-m", "batchfile", "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo"]


def test_a_run_that_finds_no_room_ends_and_the_same_command_continues(tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(NUM_REQUESTS):
            params = {"messages": [{"role": "user", "content": "word " * 400}], "max_tokens": 400}
            file.write(json.dumps({"custom_id": f"r{number}", "params": params}) + "\n")
    # The largest file that may be written: enough for the plan and the records, too little for the results.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "run", *COMMAND]
    full = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert full.returncode == 1, full.stderr
    last = full.stderr.splitlines()[-1]
    assert "free some space" in last or "raise the limit" in last
    assert "Traceback" not in full.stderr
    done = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == NUM_REQUESTS
    assert os.path.exists(tmp_path / "out.jsonl.receipt.json")


def test_a_restart_with_an_input_that_is_refused_keeps_the_old_run(tmp_path: Path) -> None:
    line = {"custom_id": "a", "params": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    first = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert first.returncode == 0, first.stderr
    (tmp_path / "blank.jsonl").write_text("\n\n")
    other = [part.replace("in.jsonl", "blank.jsonl") for part in COMMAND]
    other = [*other, "--restart"]
    refused = subprocess.run(other, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert refused.returncode == 4, refused.stderr
    again = subprocess.run(COMMAND, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert again.returncode == 0, again.stderr
