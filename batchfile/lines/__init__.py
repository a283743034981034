"""Reads request lines in all formats, writes result lines, and validates files."""

from batchfile.lines.envelope import custom_id_of as custom_id_of
from batchfile.lines.parse import find_problems as find_problems
from batchfile.lines.parse import parse_request as parse_request
