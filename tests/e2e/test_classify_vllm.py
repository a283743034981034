"""Classes, and scores of a cross-encoder, on real vLLM: the same as from the model in transformers."""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batchfile.errors import InvalidRequest, SettingsError
from batchfile.types import Completion, Raw, Request
from tests.e2e.test_embedding_vllm import request, run
from tests.helpers.engine import engine_factory
from tests.helpers.lines import Options
from tests.helpers.vllm import Adapters, Pooling, Texts, VllmOptions
from tests.tiny_encoders import LABELS, make, tokenizer
from tests.unit.test_requests import parsed

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TEXTS = ("the sky is blue", "a red apple", "what is good ?")
TEMPLATE = (
    "{{ instruction or 'is it' }} {{ (messages | selectattr('role', 'eq', 'query') | first).content }} "
    "and {{ (messages | selectattr('role', 'eq', 'document') | first).content }}"
)


class Reference:
    """The model in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, BertForSequenceClassification

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = BertForSequenceClassification.from_pretrained(folder).eval()

    def logits(self, *texts: str, **options: Any) -> Any:
        import torch

        with torch.no_grad():
            return self._model(**self.tokenizer(*texts, return_tensors="pt", **options)).logits[0].float()

    def score(self, *texts: str, **options: Any) -> float:
        return float(self.logits(*texts, **options).sigmoid()[0])


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "classifier", LABELS)


@pytest.fixture(scope="module")
def classifier(classifier_dir: Path) -> Iterator[Any]:
    built = engine_factory("vllm", model=str(classifier_dir), task="classify")()
    yield built
    built.close()


@pytest.fixture(scope="module")
def cross_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "cross-encoder", ("relevant",))


@pytest.fixture(scope="module")
def cross_encoder(cross_encoder_dir: Path) -> Iterator[Any]:
    built = engine_factory("vllm", model=str(cross_encoder_dir), task="classify")()
    yield built
    built.close()


def of(kind: Any, *inputs: Any, options: Options | None = None, **more: Any) -> Request:
    from msgspec.structs import replace

    return replace(request(), raw=Raw(kind=kind, inputs=inputs, **more), options=options)


def numbers(made: Completion) -> list[list[float]]:
    return [[float(value) for value in vector] for vector in made.vectors]


def test_classes_are_those_of_the_model(classifier: Any, classifier_dir: Path) -> None:
    reference = Reference(classifier_dir)
    plain, raw, pooled, packed = run(
        classifier,
        of("classification", *TEXTS),
        of("classification", TEXTS[0], options=Options(sent={}, use_activation=False)),
        of("pooling", *TEXTS),
        of("pooling", TEXTS[0], is_base64=True),
    )
    logits = [reference.logits(text) for text in TEXTS]
    assert numbers(plain) == [pytest.approx(one.softmax(0).tolist(), abs=0.01) for one in logits]
    assert plain.labels == tuple(LABELS[int(one.argmax())] for one in logits)
    assert numbers(raw) == [pytest.approx(logits[0].tolist(), abs=0.05)]
    assert numbers(pooled) == [pytest.approx(one, abs=1e-5) for one in numbers(plain)]
    assert isinstance(packed.vectors[0], str)
    assert struct.unpack("<3f", base64.b64decode(packed.vectors[0])) == pytest.approx(numbers(plain)[0], abs=1e-5)
    assert (plain.kind, plain.usage.input_tokens, pooled.labels) == ("classification", 6 + 5 + 6, ())


def test_what_a_classifier_does_not_serve_names_what_it_serves(classifier: Any, classifier_dir: Path) -> None:
    serves = r"which serves /v1/classify and /v1/pooling: use"
    for one in (of("score", "a", "b", num_queries=1), request("a")):
        with pytest.raises(InvalidRequest, match=f"is not served by the model classifier, {serves}"):
            classifier.prepare(one)
    with pytest.raises(InvalidRequest, match=r"^task: the model classifier is loaded for classify, not for embed"):
        classifier.prepare(of("pooling", "a", options=Options(sent={}, task="embed")))


def test_scores_of_a_cross_encoder_are_those_of_the_model(cross_encoder: Any, cross_encoder_dir: Path) -> None:
    reference = Reference(cross_encoder_dir)
    first, *rest = TEXTS
    cut = Options(sent={}, truncate_prompt_tokens=7)
    right = Options(sent={}, truncate_prompt_tokens=7, truncation_side="right")
    score, paired, ranked, short, cut_off = run(
        cross_encoder,
        of("score", first, *rest, num_queries=1),
        of("score", *TEXTS, *TEXTS[::-1], num_queries=3),
        of("rerank", first, *rest, num_queries=1, top_n=1),
        of("score", first, *rest, num_queries=1, options=cut),
        of("score", first, *rest, num_queries=1, options=right),
    )
    wanted = [reference.score(first, one) for one in rest]
    assert numbers(score) == [pytest.approx([one], abs=0.01) for one in wanted]
    crossed = [reference.score(one, other) for one, other in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert numbers(paired) == [pytest.approx([one], abs=0.01) for one in crossed]
    assert numbers(ranked) == [pytest.approx([wanted.index(max(wanted)), max(wanted)], abs=0.01)]
    trimmed = [reference.score(first, one, truncation=True, max_length=7) for one in rest]
    assert numbers(short) == [pytest.approx([one], abs=0.01) for one in trimmed]
    assert short.usage.input_tokens == cut_off.usage.input_tokens == 14
    assert numbers(cut_off) != [pytest.approx([one], abs=1e-4) for one in trimmed], "it cuts the end of both together"
    assert abs(wanted[0] - wanted[1]) > 0.1, "the model distinguishes them"


def test_a_cross_encoder_classifies_too_and_reads_no_template_unless_its_pool_sets_one(cross_encoder: Any) -> None:
    [made] = run(cross_encoder, of("classification", TEXTS[0]))
    assert (len(numbers(made)[0]), made.labels) == (1, ("relevant",))
    for key, value in (("instruction", "good"), ("chat_template_kwargs", {"instruction": "good"})):
        with pytest.raises(InvalidRequest, match=f"^{key}: this pool renders no template around a pair"):
            cross_encoder.prepare(parsed("/v1/score", {key: value}))
    with pytest.raises(InvalidRequest, match="exceeds the model's max_model_len 64"):
        cross_encoder.prepare(of("score", "red " * 40, "blue " * 40, num_queries=1))


def pooling(engine: Any, **options: Any) -> Pooling:
    """What an engine with the same model and these options would do for its requests."""
    return Pooling(engine._llm, VllmOptions(model="m", **options), Adapters((), None))


def test_a_template_around_a_pair(cross_encoder: Any, cross_encoder_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "pair.jinja").write_text(TEMPLATE)
    reference = Reference(cross_encoder_dir)
    work = pooling(cross_encoder, task="classify", chat_template=str(tmp_path / "pair.jinja"))
    pair = {"text_1": "red", "text_2": "blue"}
    for key, more in enumerate(({}, {"instruction": "what good"})):
        cross_encoder.add(key, work.prepare(parsed("/v1/score", pair | more)))
    done: dict[int, Any] = {}
    while len(done) < 2:
        done |= {finished.key: finished.outcome for finished in cross_encoder.step()}
    for key, text in enumerate(("is it red and blue", "what good red and blue")):
        assert numbers(done[key]) == [pytest.approx([reference.score(text)], abs=0.01)]


@pytest.mark.parametrize("parses", [False, True])
def test_control_tokens_in_a_template_around_a_pair_are_text_unless_the_pool_parses_them(
    tmp_path: Path, parses: bool
) -> None:
    (tmp_path / "pair.jinja").write_text("[CLS]" + TEMPLATE + "[SEP]")
    words = tokenizer()
    options = VllmOptions(model="m", chat_template=str(tmp_path / "pair.jinja"), parse_control_tokens=parses)
    texts = Texts(words, SimpleNamespace(use_sep_token=True), options, 64)
    plain = texts.pair("red", "blue", {}, adds=False, keep=None).token_ids
    found = texts.pair("red [SEP] one", "blue", {}, adds=False, keep=None).token_ids
    assert plain.count(words.sep_token_id) == 1
    assert found.count(words.sep_token_id) == 1 + parses


def test_a_model_for_another_task_is_named(classifier: Any) -> None:
    with pytest.raises(SettingsError, match=r"does not make embeddings; task = 'embed' needs one that does"):
        pooling(classifier, task="embed")


@pytest.mark.parametrize(("keep", "other"), [(0, None), (1, None), (2, "a red apple"), (0, "a red apple")])
def test_a_limit_below_the_control_tokens_is_not_ignored(keep: int, other: str | None) -> None:
    texts = Texts(tokenizer(), SimpleNamespace(use_sep_token=True), VllmOptions(model="m"), 16)
    with pytest.raises(InvalidRequest, match=f"the control tokens alone are more than {keep}; raise it"):
        texts.encode("the sky is blue", other, adds=True, keep=keep)
    assert len(texts.encode("the sky is blue", other, adds=True, keep=3 if other else 2).token_ids) <= 3
