"""How many rows may wait between two stages of a Ray Data pipeline: the one place that uses what Ray keeps private.

Ray's public settings hold a stage back by bytes, and only once half of its share of the object store is full
(``DataContext.downstream_capacity_backpressure_ratio``). Rows here are a hundred bytes, so that a million of them would
come to wait, and their entries fill the driver's memory. A bound on their number is a policy of one's own, whose base
and whose key Ray does not document. With a Ray that has them no longer, stages go on without that bound: the results
are the same, and the driver takes more memory.
"""

import logging
from typing import Any

import ray.data

logger = logging.getLogger(__name__)

_MOST = "distmil.most_waiting"


def let_few_wait(context: ray.data.DataContext, *, most: int) -> bool:
    """Hold a stage back while more than ``most`` of its rows wait for the next one, if this Ray can.

    Args:
        context: The pipeline's, which is changed.
        most: Rows.

    Returns:
        Whether it can.
    """
    try:
        from ray.data._internal.execution import backpressure_policy as private  # noqa: PLC0415  # may be gone

        known, key = private.ENABLED_BACKPRESSURE_POLICIES, private.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
        base = private.BackpressurePolicy
    except (ImportError, AttributeError) as error:
        logger.info("Ray %s does not bound the rows that wait (%s)", ray.__version__, error)
        return False
    own = type("FewWaiting", (_Bound, base), {})
    context.set_config(key, [*context.get_config(key, known), own])
    context.set_config(_MOST, most)
    return True


class _Bound:
    """What a policy answers."""

    _data_context: Any
    _topology: Any

    def can_add_input(self, op: Any) -> bool:
        """Return whether a stage may begin another row; always where Ray does not tell what waits."""
        try:
            waiting = sum(
                self._topology[after].total_enqueued_input_blocks()
                for after in op.output_dependencies
                if after in self._topology
            )
        except AttributeError:
            return True
        return bool(waiting <= self._data_context.get_config(_MOST))
