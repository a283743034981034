"""Lines, rows, schemas and media."""

from batchfile.lines import converter, parquet, parse
from batchfile.lines.converter import convert
from batchfile.lines.envelope import Unreadable, custom_id_of, decode_envelope
from batchfile.lines.file_formats import CHUNK_BYTES, Unpacker, detect, open_lines, zstd
from batchfile.lines.formats import (
    native,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_shared,
    shared,
)
from batchfile.lines.formats.anthropic import ERROR_TYPES, anthropic_lines
from batchfile.lines.formats.openai_chat import URL
from batchfile.lines.formats.openai_results import openai_file
from batchfile.lines.formats.stage import processing_status, stage_document, stage_lines, timestamp
from batchfile.lines.framing import iter_lines
from batchfile.lines.kinds import KIND_BYTES, FileKind, command_for, refusal
from batchfile.lines.kinds import detect as kinds_detect
from batchfile.lines.parquet import COLUMNS, REQUEST_KEYS, RESULT_COLUMNS, parquet_columns, parquet_lines, write_results
from batchfile.lines.parse import find_problems, parse_request
from batchfile.lines.result import (
    FinishedLine,
    NativeBlock,
    NativeChoice,
    NativeError,
    NativeMessage,
    NativeResult,
    after_id,
    decode_part,
    decode_result,
    encode_part,
    encode_result,
    encoded_id,
    escape_separators,
    with_id,
)
from batchfile.lines.validate import DuplicateFinder, LineProblem, Scan, validate
from batchfile.media.rules import MediaRules, OwnBucket
from batchfile.request_media import Media
from batchfile.request_options import Options
from batchfile.rows.frames import json_rows, open_frame
from batchfile.rows.read import Row, read_rows
from batchfile.schemas import check, compile
from batchfile.schemas.check import CheckProcess
from batchfile.schemas.rules import Verdict
