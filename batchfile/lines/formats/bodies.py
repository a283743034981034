"""The formats of `body` in OpenAI's lines, by the url of the line, and what a line may carry."""

from batchfile.lines.formats import (
    native,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    openai_scores,
)
from batchfile.lines.formats.shared import Format

Carried = (
    native.PlainParams
    | openai_chat.PlainBody
    | openai_completions.PlainBody
    | openai_embeddings.Inputs
    | openai_responses.Body
    | openai_scores.PlainBody
    | openai_scores.PlainRerankBody
)
FORMATS: dict[str, Format] = {
    one.url: one
    for one in (
        *(openai_chat.FORMAT, openai_completions.FORMAT, openai_embeddings.EMBEDDINGS, openai_responses.FORMAT),
        *(native.MESSAGES, openai_scores.SCORE, openai_scores.RERANK),
        *(openai_embeddings.CLASSIFY, openai_embeddings.POOLING),
    )
}
