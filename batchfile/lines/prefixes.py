"""Measures how much of the prompts of a file repeats the beginning of an earlier one, in fixed memory. Pure."""

import zlib
from array import array
from itertools import accumulate, chain, repeat

STEP_CHARS = 64  # about one block of vLLM's prefix cache, 16 tokens
_FINE_MAX = 2048  # characters up to which every step is looked at; from there on, one in eight of the length
_CHARS_MAX = 128 * 1024  # of a prompt that are looked at
_SLOTS = 2**21  # of 8 bytes

_COARSE = accumulate(repeat(_FINE_MAX, 40), lambda end, _: (end + end // 8) // STEP_CHARS * STEP_CHARS)
_ENDS = [*chain(range(STEP_CHARS, _FINE_MAX, STEP_CHARS), (end for end in _COARSE if end <= _CHARS_MAX))]


class SharedPrefixes:
    """Remembers hashes of the beginnings of prompts. The result is a lower bound: lengths are rounded down to a step,
    and of two beginnings in one slot the newer one is remembered.
    """

    def __init__(self) -> None:
        self.num_chars = 0
        self.num_shared = 0
        self._known = array("Q", bytes(8 * _SLOTS))

    def add(self, prompt: str) -> None:
        start, shared, is_shared, crc, adler = 0, 0, True, 0, 1
        for end in _ENDS:
            if end > len(prompt):
                break
            # Two checksums, because Python's own hash of text is another one in each process.
            part = prompt[start:end].encode("utf-8", "replace")
            crc, adler = zlib.crc32(part, crc), zlib.adler32(part, adler)
            found, slot = crc << 32 | adler, crc % _SLOTS
            is_shared = is_shared and self._known[slot] == found
            shared = end if is_shared else shared
            self._known[slot] = found
            start = end
        self.num_chars += len(prompt)
        self.num_shared += shared

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.num_shared / max(1, self.num_chars)
