"""Loaded by the process of compile.py: compiles with xgrammar alone, and does what tests need besides."""

import ctypes
import os
import time
from collections.abc import Callable

import msgspec


def load(payload: bytes) -> Callable[[bytes], bytes]:
    if payload == b"cannot":
        raise ValueError("there is no such tokenizer")
    starts = 0

    def judge(data: bytes) -> bytes:
        nonlocal starts
        starts += 1
        asked = msgspec.json.decode(data)
        match asked.get("do"):
            case "compile":
                import xgrammar

                try:
                    xgrammar.Grammar.from_json_schema(asked["schema"])
                except RuntimeError as error:
                    return b"refused: " + str(error)[:40].encode()
                return b"compiled"
            case "allocate":
                return str(len(bytearray(asked["bytes"]))).encode()
            case "crash":
                ctypes.string_at(0)
            case "sleep":
                time.sleep(asked["s"])
            case "end":
                os._exit(3)
        return f"{os.getpid()} {starts}".encode()

    if payload == b"xgrammar":
        judge(b'{"do":"compile","schema":{"type":"object"}}')
    return judge
