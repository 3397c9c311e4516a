"""What workers say about what they register is repeated to everybody, so it is bounded."""

import json

from engine_sync import SyncCore

from iii_trio.protocol.limits import REGISTERED_BYTES


def test_what_is_too_large_to_be_listed_is_left_out_and_its_sender_told() -> None:
    core = SyncCore()
    worker = core.connect(version="1")
    large, small = ["x" * REGISTERED_BYTES], {"a": 1}
    worker.send(
        {
            "type": "registerfunction",
            "id": "a::f",
            "description": "d" * (2 * REGISTERED_BYTES),
            "metadata": small,
            "request_format": large,
            "response_format": large,
        }
    )
    entry = core.engine.functions.get("default", "a::f")
    assert entry is not None
    assert json.loads(entry.metadata.raw) == small
    assert (entry.request_format.raw, entry.response_format.raw) == (b"", b"")
    assert len(entry.description or "") == REGISTERED_BYTES
    told = worker.take("error")
    assert [frame["error"]["code"] for frame in told] == ["payload_too_large"] * 2
    assert "`request_format` of 'a::f'" in told[0]["error"]["message"]


def test_so_are_the_formats_of_trigger_types() -> None:
    core = SyncCore()
    worker = core.connect(version="1")
    large = ["x" * REGISTERED_BYTES]
    worker.send({"type": "registertriggertype", "id": "t", "description": "", "trigger_request_format": large})
    assert [frame["error"]["code"] for frame in worker.take("error")] == ["payload_too_large"]
    (claim,) = [claim for claim in core.engine.triggers.types() if claim.id == "t"]
    assert claim.config_format.raw == b""
