"""`--tokens` with what decides a model's tokens: its revision, its chat template, and what control tokens mean."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers.cli import root
from tests.small_tokenizers import llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMANDS = (["estimate"], ["stats"], ["validate"])
TEXT = "Hello <|eot_id|> there"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    params = {"messages": [{"role": "user", "content": TEXT}]}
    Path("in.jsonl").write_text(json.dumps({"custom_id": "a", "params": params}) + "\n")
    return put(tmp_path / "model")


def put(folder: Path, template: str | None = None) -> Path:
    """A folder with a tokenizer, and the configuration of a model."""
    made = llama()
    made.chat_template = template or made.chat_template
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    return folder


def counted(command: list[str], *options: str) -> Any:
    """The tokens that a command reports."""
    done = CliRunner().invoke(root, [*command, "in.jsonl", "--json", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    said = json.loads(done.output.splitlines()[-1])
    return said["summary"]["prompt_tokens"] if command == ["validate"] else said["input_tokens"]


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_template_and_the_meaning_of_control_tokens_change_the_tokens(command: list[str]) -> None:
    Path("short.jinja").write_text("{{ messages[0].content }}")
    plain = counted(command, "--tokens", "model")
    short = counted(command, "--tokens", "model", "--chat-template", "short.jinja")
    parsed = counted(command, "--tokens", "model", "--parse-control-tokens")
    assert parsed < plain, "<|eot_id|> is one token"
    assert short < parsed


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_revision_is_that_of_the_tokenizer(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / "models--owner--name"
    put(hub / "snapshots" / COMMIT, "{{ messages[0].content }}")
    put(hub / "snapshots" / COMMIT[::-1])
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(COMMIT)
    (hub / "refs" / "v2").write_text(COMMIT[::-1])
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    main = counted(command, "--tokens", "owner/name")
    assert counted(command, "--tokens", "owner/name", "--revision", "v2") > main
    done = CliRunner().invoke(root, [*command, "in.jsonl", "--tokens", "owner/name", "--revision", "v3"])
    assert "the tokenizer of owner/name at revision 'v3' cannot be loaded" in str(done.exception) + done.output


def test_an_option_that_has_nothing_to_change_is_rejected() -> None:
    for command, option in (("stats", "--revision"), ("validate", "--chat-template"), ("estimate", "--chat-template")):
        done = CliRunner().invoke(root, [command, "in.jsonl", option, "x"])
        assert f"{option} needs --tokens MODEL, whose tokens it changes" in str(done.exception) + done.output
    done = CliRunner().invoke(root, ["stats", "in.jsonl", "--tokens", "model", "--chat-template", "none.jinja"])
    assert "--chat-template 'none.jinja' cannot be read: No such file" in str(done.exception) + done.output


def test_an_estimate_takes_the_options_of_the_run_and_shows_them() -> None:
    options = [
        "--model",
        "owner/name",
        "--revision",
        "v2",
        "--max-tokens",
        "7",
        "--lora",
        "a=/x",
        "--parse-control-tokens",
    ]
    text = CliRunner().invoke(root, ["estimate", "in.jsonl", *options]).output
    assert (
        "`batchfile run in.jsonl --model owner/name --revision v2 --max-tokens 7 --parse-control-tokens --lora a=/x -o"
    ) in text
    assert "at most 7 (the sum of max_tokens)" in text
