//! What several tests begin with.

use contracts::instance::InstanceConfig;

/// The configuration of an instance that nobody runs.
pub fn config() -> InstanceConfig {
    serde_json::from_value(serde_json::json!({
        "generation": 1,
        "instance_id": "i-00000000000000000000000000000001",
        "slug": "alice",
        "owner": "a-00000000000000000000000000000002",
        "origin": "http://alice.localhost:8088",
        "issuer": "http://beaver-authz-service:19090",
        "portal": "http://localhost:3081",
    }))
    .expect("a configuration")
}
