"""The commands around a run, as real processes: validate, doctor, config show, ls."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

WAIT_S = 1200.0  # only against a hang: no test depends on a machine's speed
GOOD = '{"custom_id":"good","params":{"messages":[{"role":"user","content":"hi"}]}}\n'


def batchfile(
    folder: Path, *arguments: str, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BATCHFILE_", "AWS_"))}
    return warm.run("batchfile", arguments, cwd=folder, env={**kept, **variables}, stdin=stdin)


def test_a_good_file_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    done = batchfile(tmp_path, "validate", "in.jsonl")
    assert done.returncode == 0
    assert done.stdout.decode().startswith("in.jsonl: 1 request (native format), no problems; 2 characters of prompt")


def test_every_problem_has_its_place_and_its_cure_and_a_duplicate_both_lines(tmp_path: Path) -> None:
    wrong = '{"custom_id":"a","params":{"messages":[{"role":"user","content":"hi"}],"max_token":3,"temperature":"x"}}\n'
    (tmp_path / "in.jsonl").write_text(GOOD + wrong + "\n" + GOOD + "{oops\n")
    done = batchfile(tmp_path, "validate", "in.jsonl")
    assert done.returncode == 4
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("in.jsonl:2:72: params.max_token: unknown field; did you mean max_tokens? Rename it")
    assert lines[1].startswith("in.jsonl:2:100: params.temperature: must be a number")
    assert lines[2].startswith("in.jsonl:5:2: is not valid JSON")
    assert "lines 1 and 4" in lines[3]
    assert lines[4].startswith("in.jsonl: 4 requests (native format), 4 problems")
    events = [json.loads(line) for line in batchfile(tmp_path, "validate", "in.jsonl", "--json").stdout.splitlines()]
    assert [event.get("line") for event in events] == [2, 2, 5, 4, None]
    assert events[-1]["summary"]["problems"] == 4


def test_several_files_and_stdin_are_checked_and_a_bad_file_does_not_stop_the_rest(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    done = batchfile(tmp_path, "validate", "none.jsonl", "in.jsonl", "-", stdin=GOOD.encode())
    assert done.returncode == 4
    assert [line.split(":")[0] for line in done.stdout.decode().splitlines()] == ["none.jsonl", "in.jsonl", "-"]


def test_damage_in_stdin_is_said_of_stdin(tmp_path: Path) -> None:
    done = batchfile(tmp_path, "validate", "-", stdin=b"\x1f\x8b")
    assert done.returncode == 4
    assert done.stdout.startswith(b"stdin: the gzip data is truncated")


@pytest.mark.parametrize(("closed", "code"), [("<&-", 4), (">&-", 0), ("2>&-", 0)])
def test_a_closed_stream_is_an_empty_one(tmp_path: Path, closed: str, code: int) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    name = "-" if closed == "<&-" else "in.jsonl"
    command = f"{shlex.quote(sys.executable)} -m batchfile run --engine echo {name} -o out.jsonl {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=WAIT_S, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


def test_routing_is_checked_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD.replace("}}\n", '},"metadata":{"model_hint":"gpt"}}\n'))
    assert batchfile(tmp_path, "validate", "in.jsonl").returncode == 0
    done = batchfile(tmp_path, "validate", "in.jsonl", "--stage", "email")
    assert done.returncode == 4
    assert b"gpt" in done.stdout


def test_config_show_names_the_origin_of_each_value(tmp_path: Path) -> None:
    (tmp_path / "batchfile.toml").write_text('[run]\nmodel = "my/model"\n')
    done = batchfile(tmp_path, "config", "show", "--json", BATCHFILE_STORE="here")
    shown = json.loads(done.stdout)
    assert shown["run.model"] == {"value": "my/model", "origin": "batchfile.toml"}
    assert shown["store"] == {"value": "here", "origin": "BATCHFILE_STORE"}
    assert shown["pools.mistral.max_model_len"] == {"value": 8192, "origin": "default"}


def test_a_wrong_setting_stops_every_command_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "batchfile.toml").write_text("[run]\nengine = 'vlm'\n")
    done = batchfile(tmp_path, "ls")
    assert done.returncode == 2
    assert done.stderr.decode().startswith("batchfile: run.engine = 'vlm' (from batchfile.toml)")


def test_doctor_proves_the_store_and_says_what_is_here(tmp_path: Path) -> None:
    done = batchfile(tmp_path, "doctor", "--store", "st", "--json")
    checks = {item["name"]: item for item in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, checks
    assert set(checks) == {"python", "batchfile", "settings", "store", "vllm", "gpu", "model", "fits", "disk"}
    assert "enforces conditional writes" in checks["store"]["detail"]


def test_doctor_finds_a_wrong_name_of_the_settings_model(tmp_path: Path) -> None:
    (tmp_path / "batchfile.toml").write_text("[run]\nmodel = './no-such-model'\n")
    done = batchfile(tmp_path, "doctor", "--json")
    assert done.returncode == 1
    [found] = [item for item in json.loads(done.stdout)["checks"] if item["verdict"] == "failed"]
    assert found["name"] == "model"
    assert "'./no-such-model': the directory does not exist" in found["detail"]


def test_doctor_calculates_what_fits_on_gpus_that_are_not_here(tmp_path: Path) -> None:
    config = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 14496047104}}')
    done = batchfile(tmp_path, "doctor", "--model", ".", "--gpu", "4090", "--shared-tokens", "300", "--json")
    [fits] = [item for item in json.loads(done.stdout)["checks"] if item["name"] == "fits"]
    assert done.returncode == 0, fits
    assert (fits["verdict"], fits["figures"]["gpu"], fits["figures"]["replicas"]) == ("ok", "RTX 4090", 1)
    assert fits["figures"]["running"] > 64
    done = batchfile(tmp_path, "doctor", "--model", ".", "--gpu", "4091")
    assert done.returncode == 1
    assert b"--gpu 4091: is unknown; use a memory such as 2x24GB, or a name" in done.stdout


def test_without_a_store_a_command_says_how_to_name_one(tmp_path: Path) -> None:
    done = batchfile(tmp_path, "ls")
    assert done.returncode == 2
    assert b"--store" in done.stderr


def test_a_model_that_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(GOOD)
    done = batchfile(tmp_path, "run", "in.jsonl", "-o", "out.jsonl", BATCHFILE_CACHE=str(tmp_path))
    assert done.returncode == 2
    assert b"--model" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_run_says_once_that_the_model_of_its_requests_is_not_chosen_by_them(tmp_path: Path) -> None:
    params = {"messages": [{"role": "user", "content": "hi"}], "model": "gpt-9"}
    lines = [json.dumps({"custom_id": str(number), "params": params}) for number in range(3)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = batchfile(tmp_path, "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo")
    assert done.returncode == 0
    assert done.stderr.decode().count("has the model 'gpt-9'") == 1


def test_a_file_where_the_store_should_be_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a", "params": {"messages": [{"role": "user", "content": "x"}]}}')
    (tmp_path / "file").write_text("")
    done = batchfile(tmp_path, "run", "in.jsonl", "-o", "out.jsonl", "--engine", "echo", "--store", "file")
    assert done.returncode == 2
    assert "there is a file where a folder is needed" in done.stderr.decode()
