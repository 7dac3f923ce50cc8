"""A random walk of users, nodes and faults: what is promised holds at every step, and every job ends at last.

`tests/support/world.py` has the promises. `make test-faults` walks further (WALKS).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from finetune_operator.runtime.gateway import ConflictError, RejectedError, TransientError
from tests.support.world import OperatorDiedError, World

WALKS = int(os.environ.get("WALKS", "40"))
KINDS = st.sampled_from(("FineTuneJob", "Job", "Pod"))
CODES = st.sampled_from((0, 0, 0, 12, 24, 30, 31, 40, 45, 50, 60, 137, 143, 99))
FAULTS = st.sampled_from((ConflictError, TransientError, RejectedError, OperatorDiedError))
SOME = st.integers(0, 7)


class Walk(RuleBasedStateMachine):
    """One walk. Rules that cost nothing come often, those that end a job seldom."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule()
    def the_operator_looks(self) -> None:
        self.world.reconcile()

    @rule()
    def everything_is_seen_and_looked_at(self) -> None:
        self.world.catch_up()

    @rule()
    def pods_run_and_it_is_seen(self) -> None:
        self.world.control()
        self.world.start_pods()
        self.world.catch_up()

    @rule(code=CODES)
    def pods_end_and_it_is_seen(self, code) -> None:
        self.world.end_pods(code)
        self.world.catch_up()

    @rule()
    def a_while_goes_well(self) -> None:
        self.world.everybody_acts()

    @rule(kind=KINDS, count=st.integers(1, 3))
    def some_events_arrive(self, kind, count) -> None:
        self.world.deliver(kind, count)

    @rule()
    def kubernetes_acts(self) -> None:
        self.world.control()
        self.world.start_pods()

    @rule(code=CODES, silent=st.sampled_from((False, False, True)))
    def pods_end(self, code, silent) -> None:
        self.world.end_pods(code, silent=silent)

    @rule()
    def pods_go(self) -> None:
        self.world.reap()

    @rule(seconds=st.sampled_from((1, 2, 10, 61, 400)))
    def time_passes(self, seconds) -> None:
        self.world.pass_time(seconds)

    @rule(fault=FAULTS, after=st.booleans())
    def the_next_write_fails(self, fault, after) -> None:
        setattr(self.world.gateway, "fault_after" if after else "fault_before", fault("by chance"))

    @rule()
    def the_operator_is_restarted(self) -> None:
        self.world.restart_operator()

    @rule()
    def a_node_is_lost(self) -> None:
        self.world.lose_node()

    @rule(number=SOME)
    def a_pod_is_deleted(self, number) -> None:
        self.world.delete_pod(number)

    @rule(number=SOME)
    def a_child_is_deleted(self, number) -> None:
        self.world.delete_child(number)

    @rule(number=SOME)
    def a_child_is_deleted_and_it_is_seen(self, number) -> None:
        self.world.delete_child(number)
        self.world.catch_up()

    @rule(suspend=st.booleans())
    def the_user_suspends_or_resumes(self, suspend) -> None:
        self.world.change_lifecycle(suspend=suspend)

    @rule(number=SOME)
    def the_user_changes_the_spec(self, number) -> None:
        self.world.change_spec(dataset={"uri": f"s3://data/{number}.jsonl"})

    @rule(number=SOME)
    def the_user_wants_a_new_run(self, number) -> None:
        self.world.annotate(str(number))

    @rule(seconds=st.sampled_from((None, 5, 300)))
    def the_user_sets_a_deadline(self, seconds) -> None:
        self.world.change_lifecycle(activeDeadlineSeconds=seconds)

    @rule()
    def the_user_deletes_the_job(self) -> None:
        self.world.delete_job()

    @rule()
    def the_user_creates_it_again(self) -> None:
        self.world.create_job()

    def teardown(self) -> None:
        try:
            self.world.settle()
        finally:
            self.world.close()


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=WALKS,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize="WALKS" not in os.environ,  # the suite walks where it walked yesterday, test-faults somewhere new
)
