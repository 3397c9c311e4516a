"""The update operations, row by row of spec/state-stream.md §4."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.stores import MISSING, MalformedOps, apply_ops, parse_ops

Op = dict[str, Any]

I64_MAX = 2**63 - 1
I64_MIN = -(2**63)
U64_MAX = 2**64 - 1


def op(kind: str, *path: Any, **rest: Any) -> Op:
    return {"type": kind, **({"path": path[0]} if path else {}), **rest}


def done(current: Any, *ops: Op) -> Any:
    """The value after operations that all succeed."""
    new_value, errors, changed = apply_ops(current, list(ops))
    assert errors == []
    assert changed == bool(ops)
    return new_value


def refused(current: Any, one: Op) -> tuple[str, str]:
    """Code and message of the one operation, which changes nothing."""
    before = copy.deepcopy(current)
    new_value, errors, changed = apply_ops(current, [one])
    assert not changed
    assert new_value == ({} if current is MISSING else before)
    [error] = errors
    assert list(error) == ["op_index", "code", "message"]
    assert error["op_index"] == 0
    return error["code"], error["message"]


# -- §4.1 shapes


@pytest.mark.parametrize(
    ("ops", "detail"),
    [
        (None, "ops: invalid type: null, expected a sequence"),
        ({}, "ops: invalid type: map, expected a sequence"),
        ("x", 'ops: invalid type: string "x", expected a sequence'),
        ([1], "ops[0]: invalid type: integer `1`, expected a map"),
        ([{}], "ops[0]: missing field `type`"),
        ([{"type": 1}], "ops[0].type: invalid type: integer `1`, expected a string"),
        ([op("set", "a"), op("explode", "a")], "ops[1]: unknown variant `explode`"),
        ([op("SET", "a")], "ops[0]: unknown variant `SET`"),
        ([op("set", value=1)], "ops[0]: missing field `path`"),
        ([op("set", None, value=1)], "ops[0].path: invalid type: null, expected a string"),
        ([op("set", ["a"], value=1)], "ops[0].path: invalid type: sequence, expected a string"),
        ([op("set", 1, value=1)], "ops[0].path: invalid type: integer `1`, expected a string"),
        ([op("remove")], "ops[0]: missing field `path`"),
        ([op("remove", ["a"])], "ops[0].path: invalid type: sequence, expected a string"),
        ([op("increment", by=1)], "ops[0]: missing field `path`"),
        ([op("increment", "a")], "ops[0]: missing field `by`"),
        ([op("decrement", "a")], "ops[0]: missing field `by`"),
        ([op("increment", "a", by="1")], 'ops[0].by: invalid type: string "1", expected i64'),
        ([op("increment", "a", by=True)], "ops[0].by: invalid type: boolean `true`, expected i64"),
        ([op("increment", "a", by=None)], "ops[0].by: invalid type: null, expected i64"),
        ([op("increment", "a", by=float("inf"))], "ops[0].by: invalid type: floating point `inf`, expected i64"),
        ([op("increment", "a", by=float("nan"))], "ops[0].by: invalid type: floating point `nan`, expected i64"),
        ([op("increment", "a", by=2**63)], f"ops[0].by: invalid value: integer `{2**63}`, expected i64"),
        ([op("increment", ["a"], by=1)], "ops[0].path: invalid type: sequence, expected a string"),
        ([op("merge", "a")], "ops[0]: missing field `value`"),
        ([op("append", "a")], "ops[0]: missing field `value`"),
        ([op("merge", {"a": 1}, value={})], "ops[0].path: invalid type: map, expected a string or an array of strings"),
        ([op("append", ["a", 1], value=1)], "ops[0].path: invalid type: integer `1`, expected a string"),
        ([op("append", False, value=1)], "ops[0].path: invalid type: boolean `false`, expected a string or an array"),
    ],
)
def test_malformed_operations_refuse_the_whole_call(ops: Any, detail: str) -> None:
    with pytest.raises(MalformedOps) as caught:
        parse_ops(ops)
    assert str(caught.value).startswith(detail)


def test_no_operations_are_fine_and_change_nothing() -> None:
    assert apply_ops({"a": 1}, []) == ({"a": 1}, [], False)
    assert apply_ops(None, []) == (None, [], False)
    assert apply_ops(MISSING, []) == ({}, [], False)


def test_unknown_fields_of_an_operation_are_ignored() -> None:
    assert done({}, op("set", "a", value=1, by=7, comment="x")) == {"a": 1}


@pytest.mark.parametrize("root", [{}, {"path": None}, {"path": ""}, {"path": []}])
def test_four_spellings_of_the_root_for_merge_and_append(root: Op) -> None:
    assert done({"a": 1}, {"type": "merge", "value": {"b": 2}, **root}) == {"a": 1, "b": 2}
    assert done([1], {"type": "append", "value": 2, **root}) == [1, 2]


def test_dots_never_separate() -> None:
    assert done({}, op("set", "a.b", value=1)) == {"a.b": 1}
    assert done({}, op("merge", ["x.y", "z"], value={"k": 1})) == {"x.y": {"z": {"k": 1}}}
    assert done({}, op("append", "a.b", value=1)) == {"a.b": [1]}
    assert done({"a": {"b": 1}}, op("remove", "a.b")) == {"a": {"b": 1}}
    assert done({"a": {"b": 1}}, op("increment", "a.b", by=1)) == {"a": {"b": 1}, "a.b": 1}


# -- §4.2 processing


def test_operations_apply_in_order_and_a_failing_one_is_skipped() -> None:
    new_value, errors, changed = apply_ops(
        {"name": "x"},
        [
            op("set", "a", value=1),
            op("increment", "name", by=1),
            op("increment", "a", by=1),
            op("append", "a", value=1),
            op("remove", "name"),
        ],
    )
    assert new_value == {"a": 2}
    assert changed
    assert [(error["op_index"], error["code"]) for error in errors] == [
        (1, "increment.not_number"),
        (3, "append.type_mismatch"),
    ]


@pytest.mark.parametrize(
    "first",
    [
        op("set", "a", value=1),
        op("merge", value={}),
        op("remove", "never there"),
        op("increment", "a", by=1),
        op("append", "a", value=1),
    ],
)
def test_the_first_success_makes_a_missing_key_an_ordinary_object(first: Op) -> None:
    for second, code in (
        (op("increment", "", by=1), "increment.not_number"),
        (op("append", value=1), "append.type_mismatch"),
    ):
        _, errors, changed = apply_ops(MISSING, [first, second])
        assert changed
        assert [error["code"] for error in errors] == [code]


def test_a_failure_leaves_a_missing_key_missing() -> None:
    new_value, errors, changed = apply_ops(MISSING, [op("set", "__proto__", value=1), op("increment", "", by=3)])
    assert (new_value, changed, len(errors)) == (3, True, 1)


def test_only_failures_on_a_missing_key_answer_an_empty_object_and_change_nothing() -> None:
    new_value, errors, changed = apply_ops(MISSING, [op("set", "__proto__", value=1), op("merge", value=1)])
    assert (new_value, changed, len(errors)) == ({}, False, 2)


# -- §4.3 validation

DEEP = ["s"] * 33
FIVE = [
    ("set", {"value": 1}),
    ("remove", {}),
    ("increment", {"by": 1}),
    ("decrement", {"by": 1}),
    ("append", {"value": 1}),
    ("merge", {"value": {}}),
]


@pytest.mark.parametrize("kind", ["merge", "append"])
def test_a_path_may_have_32_segments(kind: str) -> None:
    code, message = refused({}, op(kind, DEEP, value={}))
    assert (code, message) == (f"{kind}.path.too_deep", "Path depth 33 exceeds maximum of 32")
    done({}, op(kind, DEEP[:32], value={}))


@pytest.mark.parametrize("kind", ["merge", "append"])
@pytest.mark.parametrize("path", [[""], ["a", ""], ["", "a"]])
def test_an_empty_segment_is_not_the_root(kind: str, path: list[str]) -> None:
    assert refused({}, op(kind, path, value={})) == (f"{kind}.path.empty_segment", "Path contains an empty segment")


@pytest.mark.parametrize(("kind", "rest"), FIVE)
def test_a_segment_may_have_256_bytes(kind: str, rest: Op) -> None:
    for path, size in (("x" * 257, 257), ("ä" * 129, 258)):
        message = f"Path segment of {size} bytes exceeds maximum of 256"
        assert refused({}, op(kind, path, **rest)) == (f"{kind}.path.segment_too_long", message)
    done({}, op(kind, "ä" * 128, **rest))


@pytest.mark.parametrize(("kind", "rest"), FIVE)
@pytest.mark.parametrize("name", ["__proto__", "constructor", "prototype"])
def test_polluting_segments_are_refused(kind: str, rest: Op, name: str) -> None:
    expected = (f"{kind}.path.proto_polluted", f"Path segment '{name}' is not allowed (prototype pollution).")
    assert refused({"a": 1}, op(kind, name, **rest)) == expected
    assert refused(5, op(kind, name, **rest)) == expected


@pytest.mark.parametrize("kind", ["merge", "append"])
@pytest.mark.parametrize("path", [["__proto__", "a"], ["a", "constructor", "b"], ["a", "b", "prototype"]])
def test_polluting_segments_are_refused_anywhere_in_a_path(kind: str, path: list[str]) -> None:
    assert refused({"a": {}}, op(kind, path, value={}))[0] == f"{kind}.path.proto_polluted"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (["", *DEEP], "too_deep"),
        (["", "x" * 257], "empty_segment"),
        (["x" * 257, ""], "segment_too_long"),
        (["__proto__", ""], "proto_polluted"),
    ],
)
def test_the_first_failing_check_wins(path: list[str], code: str) -> None:
    assert refused({}, op("merge", path, value="not an object"))[0] == f"merge.path.{code}"


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_a_merge_takes_only_objects(value: Any) -> None:
    expected = ("merge.value.not_an_object", "Merge value must be a JSON object")
    assert refused({"a": 1}, op("merge", value=value)) == expected


def test_a_merge_takes_1024_keys() -> None:
    value = {str(number): number for number in range(1025)}
    message = "Merge value has 1025 top-level keys, exceeds maximum of 1024"
    assert refused({}, op("merge", value=value)) == ("merge.value.too_many_keys", message)
    del value["0"]
    assert done({}, op("merge", value=value)) == value


@pytest.mark.parametrize("name", ["__proto__", "constructor", "prototype"])
def test_a_merge_refuses_polluting_keys_at_the_top_only(name: str) -> None:
    message = f'Merge value top-level key "{name}" is a prototype-pollution sink'
    assert refused({}, op("merge", "a", value={"fine": 1, name: 1})) == ("merge.value.proto_polluted", message)
    assert done({}, op("merge", value={"a": {name: 1}})) == {"a": {name: 1}}


def nested(depth: int, leaf: Any) -> Any:
    value = leaf
    for level in range(depth):
        value = {"k": value} if level % 2 else [value]
    return {"k": value}


def test_a_merge_value_may_be_16_deep() -> None:
    assert done({}, op("merge", value=nested(15, 1))) == nested(15, 1)
    message = "Merge value JSON nesting depth 17 exceeds maximum of 16"
    assert refused({}, op("merge", value=nested(16, 1))) == ("merge.value.too_deep", message)
    assert refused({}, op("merge", value=nested(15, {})))[0] == "merge.value.too_deep"
    assert done({}, op("merge", value=nested(14, {}))) == nested(14, {})
    message = "Merge value JSON nesting depth 100001 exceeds maximum of 16"
    assert refused({}, op("merge", value=nested(100_000, 1)))[1] == message


def test_values_of_set_and_append_are_not_checked() -> None:
    assert done({}, op("set", "a", value={"__proto__": 1})) == {"a": {"__proto__": 1}}
    assert done([], op("append", value={"constructor": 1})) == [{"constructor": 1}]


# -- §4.4 and §4.5 set


@pytest.mark.parametrize("current", [MISSING, None, 1, "x", [1], {"a": 1}])
@pytest.mark.parametrize("value", [None, 0, "", [], {"b": 2}])
def test_set_root_replaces_everything(current: Any, value: Any) -> None:
    assert done(current, op("set", "", value=value)) == value


def test_set_without_a_value_sets_null() -> None:
    assert done({"a": 1}, op("set", "a")) == {"a": None}
    assert done({"a": 1}, op("set", "")) is None


def test_set_assigns_a_field() -> None:
    assert done({"name": "A", "count": 0}, op("set", "count", value=5)) == {"name": "A", "count": 5}
    assert done(MISSING, op("set", "a", value=1)) == {"a": 1}


NOT_OBJECTS: list[tuple[Any, str]] = [
    (None, "null"),
    (True, "boolean"),
    (1, "number"),
    (1.5, "number"),
    ("x", "string"),
    ([], "array"),
]


@pytest.mark.parametrize(("kind", "rest"), [entry for entry in FIVE if entry[0] not in ("merge", "append")])
@pytest.mark.parametrize(("current", "type_"), NOT_OBJECTS)
def test_a_field_needs_an_object(kind: str, rest: Op, current: Any, type_: str) -> None:
    message = f"Cannot {kind} at path 'f': target is {type_}, expected object."
    assert refused(current, op(kind, "f", **rest)) == (f"{kind}.target_not_object", message)


# -- merge


def test_merge_assigns_shallowly() -> None:
    assert done({"a": {"x": 1}, "b": 1}, op("merge", value={"a": {"y": 2}})) == {"a": {"y": 2}, "b": 1}
    assert done(MISSING, op("merge", value={"a": 1})) == {"a": 1}


@pytest.mark.parametrize("current", [None, True, 1, "x", [1]])
def test_merge_at_the_root_of_anything_else_does_nothing_without_an_error(current: Any) -> None:
    assert done(current, op("merge", value={"a": 1})) == current


def test_merge_at_a_key_accumulates() -> None:
    ops = [op("merge", "session", value={"a": 1}), op("merge", "session", value={"b": 2})]
    assert done({"other": 1}, *ops) == {"other": 1, "session": {"a": 1, "b": 2}}


def test_merge_at_nested_keys_keeps_siblings() -> None:
    current = {"sessions": {"abc": {"x": 1}, "def": {"y": 1}}, "z": 1}
    expected = {"sessions": {"abc": {"x": 1, "new": 2}, "def": {"y": 1}}, "z": 1}
    assert done(current, op("merge", ["sessions", "abc"], value={"new": 2})) == expected


@pytest.mark.parametrize("blocking", [None, 1, "x", [1, 2], True])
def test_merge_replaces_whatever_is_no_object_on_its_way(blocking: Any) -> None:
    one = op("merge", ["a", "1", "b"], value={"k": 1})
    expected = {"a": {"1": {"b": {"k": 1}}}}
    assert done({"a": blocking}, one) == expected
    assert done({"a": {"1": blocking}}, one) == expected
    assert done({"a": {"1": {"b": blocking}}}, one) == expected
    assert done(blocking, one) == expected
    assert done(blocking, op("merge", "a", value={"k": 1})) == {"a": {"k": 1}}


# -- increment and decrement


@pytest.mark.parametrize(
    ("current", "one", "expected"),
    [
        (MISSING, op("increment", "", by=3), 3),
        (MISSING, op("decrement", "", by=3), -3),
        (5, op("increment", "", by=3), 8),
        (5, op("decrement", "", by=3), 2),
        ({}, op("increment", "n", by=3), {"n": 3}),
        ({}, op("decrement", "n", by=3), {"n": -3}),
        (MISSING, op("increment", "n", by=3), {"n": 3}),
        (MISSING, op("decrement", "n", by=I64_MIN), {"n": 2**63}),
        ({"n": 5}, op("increment", "n", by=0), {"n": 5}),
        ({"n": 5}, op("increment", "n", by=-7), {"n": -2}),
        ({"n": I64_MAX}, op("increment", "n", by=1), {"n": 2**63}),
        ({"n": 2**63}, op("increment", "n", by=I64_MAX), {"n": U64_MAX}),
        ({"n": U64_MAX}, op("decrement", "n", by=1), {"n": U64_MAX - 1}),
        ({"n": 10**15 + 1}, op("increment", "n", by=1), {"n": 10**15 + 2}),
        ({"n": 5}, op("increment", "n", by=2.0), {"n": 7}),
        (MISSING, op("increment", "n", by=2.0), {"n": 2}),
        ({"n": 5}, op("increment", "n", by=0.5), {"n": 5.5}),
        (MISSING, op("decrement", "n", by=0.5), {"n": -0.5}),
        ({"n": 1.5}, op("increment", "n", by=1), {"n": 2.5}),
        ({"n": 1.0}, op("increment", "n", by=1), {"n": 2.0}),
        ({"n": 0}, op("increment", "n", by=1e300), {"n": 1e300}),
    ],
)
def test_arithmetic(current: Any, one: Op, expected: Any) -> None:
    result = done(current, one)
    assert result == expected
    found, wanted = (value["n"] if isinstance(value, dict) else value for value in (result, expected))
    assert type(found) is type(wanted)


@pytest.mark.parametrize("kind", ["increment", "decrement"])
@pytest.mark.parametrize(
    ("stored", "type_"), [(None, "null"), (True, "boolean"), ("5", "string"), ([], "array"), ({}, "object")]
)
def test_only_numbers_are_counted(kind: str, stored: Any, type_: str) -> None:
    for by in (0, 1, 1.5):
        expected = (f"{kind}.not_number", f"Expected number at path 'n', got {type_}.")
        assert refused({"n": stored}, op(kind, "n", by=by)) == expected
        expected = (f"{kind}.not_number", f"Expected number at path 'root', got {type_}.")
        assert refused(stored, op(kind, "", by=by)) == expected


@pytest.mark.parametrize(
    ("stored", "one"),
    [
        (U64_MAX, op("increment", "n", by=1)),
        (I64_MIN, op("decrement", "n", by=1)),
        (I64_MIN, op("increment", "n", by=-1)),
        (1e308, op("increment", "n", by=1e308)),
        (-1e308, op("decrement", "n", by=1e308)),
        (10**400, op("increment", "n", by=0.5)),
        (10**400, op("increment", "n", by=1)),
    ],
)
def test_what_no_number_can_hold_is_refused(stored: Any, one: Op) -> None:
    assert refused({"n": stored}, one) == (f"{one['type']}.not_number", "Expected number at path 'n', got number.")


# -- append


@pytest.mark.parametrize(
    ("current", "one", "expected"),
    [
        (MISSING, op("append", value="x"), "x"),
        (MISSING, op("append", value=1), [1]),
        (MISSING, op("append", value=None), [None]),
        (MISSING, op("append", value=[1]), [[1]]),
        ([1], op("append", value=[2, 3]), [1, [2, 3]]),
        ([], op("append", value={"a": 1}), [{"a": 1}]),
        ("hello", op("append", value=" world"), "hello world"),
        (None, op("append", value="x"), "x"),
        (None, op("append", value=1), [1]),
        ({"events": []}, op("append", "events", value={"a": 1}), {"events": [{"a": 1}]}),
        ({}, op("append", "f", value="x"), {"f": "x"}),
        ({}, op("append", "f", value=1), {"f": [1]}),
        ({}, op("append", ["f"], value="x"), {"f": "x"}),
        (MISSING, op("append", "f", value="x"), {"f": "x"}),
        ({"f": None}, op("append", "f", value="x"), {"f": "x"}),
        ({"f": None}, op("append", ["f"], value=1), {"f": [1]}),
        ({"f": "a"}, op("append", "f", value="b"), {"f": "ab"}),
        ({}, op("append", ["a", "b"], value="x"), {"a": {"b": ["x"]}}),
        (MISSING, op("append", ["a", "b", "c"], value=1), {"a": {"b": {"c": [1]}}}),
        ({"a": {"b": None}}, op("append", ["a", "b"], value="x"), {"a": {"b": ["x"]}}),
        ({"a": {"b": "x"}}, op("append", ["a", "b"], value="y"), {"a": {"b": "xy"}}),
        ({"a": {"b": [1], "c": 2}}, op("append", ["a", "b"], value=3), {"a": {"b": [1, 3], "c": 2}}),
        ({"a": [1, 2]}, op("append", ["a", "1", "b"], value=3), {"a": {"1": {"b": [3]}}}),
        ({"a": 7}, op("append", ["a", "b"], value="x"), {"a": {"b": ["x"]}}),
    ],
)
def test_append(current: Any, one: Op, expected: Any) -> None:
    assert done(current, one) == expected


def test_two_appends_in_one_call() -> None:
    assert done({"t": "a"}, op("append", "t", value="b"), op("append", "t", value="c")) == {"t": "abc"}
    assert done(MISSING, op("append", value=1), op("append", value=2)) == [1, 2]


@pytest.mark.parametrize(("current", "type_"), NOT_OBJECTS)
def test_an_append_to_a_field_needs_an_object(current: Any, type_: str) -> None:
    for path, label in (("f", "[f]"), (["f"], "[f]"), (["a", "b c"], "[a, b c]")):
        message = f"Cannot append at path '{label}': target is {type_}, expected object."
        assert refused(current, op("append", path, value=1)) == ("append.target_not_object", message)


@pytest.mark.parametrize(("leaf", "type_"), [({}, "object"), (1, "number"), (1.5, "number"), (False, "boolean")])
def test_an_append_to_what_does_not_grow_is_refused(leaf: Any, type_: str) -> None:
    for current, path, label in (
        (leaf, None, "root"),
        ({"f": leaf}, "f", "f"),
        ({"f": leaf}, ["f"], "f"),
        ({"a": {"b": leaf}}, ["a", "b"], "b"),
    ):
        message = f"Cannot append at path '{label}': target is {type_}, expected array, string, null, or missing field."
        assert refused(current, op("append", path, value="x")) == ("append.type_mismatch", message)


@pytest.mark.parametrize(
    ("value", "type_"), [(None, "null"), (True, "boolean"), (1, "number"), ([], "array"), ({}, "object")]
)
def test_a_string_grows_by_strings_only(value: Any, type_: str) -> None:
    for current, path, label in (("s", None, "root"), ({"f": "s"}, "f", "f"), ({"a": {"b": "s"}}, ["a", "b"], "b")):
        message = f"Expected string append value at path '{label}', got {type_}."
        assert refused(current, op("append", path, value=value)) == ("append.type_mismatch", message)


# -- remove


@pytest.mark.parametrize("current", [MISSING, None, 1, {"a": 1}, [1]])
def test_remove_root_leaves_null(current: Any) -> None:
    assert done(current, op("remove", "")) is None


def test_remove_a_field() -> None:
    assert done({"a": 1, "b": 2}, op("remove", "a")) == {"b": 2}
    assert done({"b": 2}, op("remove", "a")) == {"b": 2}
    assert done(MISSING, op("remove", "a")) == {}


# -- purity

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=8,
)
_key = st.sampled_from(["", "a", "b", "c"])
_path = st.none() | _key | st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)
_ops = st.lists(
    st.one_of(
        st.builds(lambda path, value: op("set", path, value=value), _key, _json),
        st.builds(lambda path: op("remove", path), _key),
        st.builds(lambda path, by: op("increment", path, by=by), _key, st.integers(-3, 3)),
        st.builds(lambda path, by: op("decrement", path, by=by), _key, st.integers(-3, 3)),
        st.builds(lambda path, value: op("append", path, value=value), _path, _json),
        st.builds(lambda path, value: op("merge", path, value=value), _path, _json),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(_json | st.just(MISSING), _ops)
def test_nothing_passed_in_is_modified_and_one_call_equals_many(current: Any, ops: list[Op]) -> None:
    before, ops_before = copy.deepcopy(current), copy.deepcopy(ops)
    parsed = parse_ops(ops)
    first = parsed.apply(current)
    assert current == before
    assert ops == ops_before
    assert parsed.apply(current) == first
    value = current
    errors = 0
    for one in ops:
        step = apply_ops(value, [one])
        errors += len(step.errors)
        if step.changed_any:
            value = step.new_value
    assert first.new_value == ({} if value is MISSING else value)
    assert len(first.errors) == errors
