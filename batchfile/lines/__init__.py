"""Bytes to words and back: the request line formats, the result line, and what is wrong with a file."""

from batchfile.lines.envelope import custom_id_of as custom_id_of
from batchfile.lines.parse import find_problems as find_problems
from batchfile.lines.parse import parse_request as parse_request
