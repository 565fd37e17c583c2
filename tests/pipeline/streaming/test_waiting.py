"""Rows that wait between two stages are bounded by what Ray keeps private, and a Ray without it is taken as it is."""

from types import SimpleNamespace

import pytest
import ray.data
from ray.data._internal.execution import backpressure_policy as private

from distmil.pipeline.streaming.waiting import let_few_wait

pytestmark = pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own settings
KEY = private.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY


def policy_of(context, topology):
    assert let_few_wait(context, most=5)
    *others, own = context.get_config(KEY)
    assert others == private.ENABLED_BACKPRESSURE_POLICIES
    return own(context, topology, None)


def stage(waiting, *after):
    return SimpleNamespace(output_dependencies=after), SimpleNamespace(total_enqueued_input_blocks=lambda: waiting)


def in_context(stages):
    """Ray looks stages up by identity."""
    found = {id(op): state for op, state in stages}
    return type("Topology", (), {
        "__getitem__": lambda _, op: found[id(op)], "__contains__": lambda _, op: id(op) in found,
    })()  # fmt: skip


@pytest.mark.parametrize(("waiting", "may_begin"), [(0, True), (5, True), (6, False)])
def test_a_stage_is_held_back_by_the_rows_that_wait_for_the_next_one(waiting, may_begin):
    last = stage(waiting)
    first = stage(100, last[0], SimpleNamespace())  # its own queue does not count, nor what has no state
    policy = policy_of(ray.data.DataContext(), in_context([first, last]))
    assert policy.can_add_input(first[0]) is may_begin
    assert policy.can_add_input(last[0])
    assert policy.max_task_output_bytes_to_read(first[0]) is None


def test_a_ray_that_says_it_in_another_way_bounds_nothing(monkeypatch):
    policy = policy_of(ray.data.DataContext(), in_context([]))
    assert policy.can_add_input(SimpleNamespace())
    monkeypatch.delattr(private, "BackpressurePolicy")
    context = ray.data.DataContext()
    assert not let_few_wait(context, most=5)
    assert context.get_config(KEY, None) is None
