//! What `/metrics` says of each of its numbers.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes all of them, to whoever asks for `/metrics`.
pub fn describe() {
    describe_gauge!("beaver_instances", "Instances by phase.");
    describe_gauge!("beaver_instances_disk_full", "Instances whose data takes more disk than it may.");
    describe_gauge!("beaver_line_waiting", "Instances in line, until the host bears one more.");
    describe_gauge!("beaver_orphans", "Units of this stack that the registry does not know.");
    describe_gauge!("beaver_plans_good", "1 when the operator's file of plans is taken over, 0 when it has a mistake.");
    describe_gauge!("beaver_pool_ready", "Workspaces made ahead that wait for whoever signs up next.");
    describe_histogram!("beaver_bring_up_seconds", Unit::Seconds, "From an instance's turn in line until it is up.");
    describe_histogram!("beaver_full_pass_seconds", Unit::Seconds, "Comparing all that is wanted with all there is.");
    describe_histogram!("beaver_reconcile_step_seconds", Unit::Seconds, "Steps of the reconciler that were done.");
    describe_counter!("beaver_reconcile_step_failures_total", "Steps of the reconciler that failed.");
    describe_counter!("beaver_engine_errors_total", "Errors of the engine by kind.");
    describe_counter!("beaver_sleeps_total", "Instances put to sleep, by how deep.");
    describe_counter!("beaver_sleeps_left_total", "Sleeps that were left off, by the step that kept it awake.");
    describe_counter!("beaver_wakes_total", "Instances woken, by how deep they slept and by whom.");
}
