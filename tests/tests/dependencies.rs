//! Licences and sources of everything that is linked, by `deny.toml`.

use std::{collections::HashMap, fs, process::Command};

use beaver_tests::paths;
use serde::Deserialize;

#[derive(Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    sources: Sources,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize, Clone)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

fn policy() -> Policy {
    toml::from_str(&fs::read_to_string(paths::root().join("deny.toml")).unwrap()).unwrap()
}

/// What is wrong with a package; nothing when it may be used.
fn refuse(policy: &Policy, package: &Package) -> Option<String> {
    let Package { name, version, license, source, .. } = package;
    if let Some(source) = source {
        let registry = source.strip_prefix("registry+").unwrap_or(source);
        if !policy.sources.allow_registry.iter().any(|allowed| allowed == registry) {
            return Some(format!("{name} {version} comes from {source}"));
        }
    }
    let Some(license) = license else { return Some(format!("{name} {version} names no licence")) };
    let expression = match spdx::Expression::parse_mode(license, spdx::ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{name} {version}: {license} is no SPDX expression: {}", error.reason)),
    };
    let exceptions = policy.licenses.exceptions.iter().filter(|e| e.name == *name).flat_map(|e| &e.allow);
    let allowed: Vec<_> = policy.licenses.allow.iter().chain(exceptions).collect();
    let fits = expression.evaluate(|requirement| allowed.iter().any(|a| **a == requirement.to_string()));
    (!fits).then(|| format!("{name} {version} is under {license}, which deny.toml does not allow"))
}

#[test]
fn every_dependency_has_an_allowed_licence_and_source() {
    let policy = policy();
    let mut packages = HashMap::new();
    for target in &policy.graph.targets {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target])
            .current_dir(paths::root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
        // `packages` also lists what other platforms would need; `resolve` is what this one does.
        let all: HashMap<_, _> = metadata.packages.into_iter().map(|p| (p.id.clone(), p)).collect();
        packages.extend(metadata.resolve.nodes.into_iter().map(|n| (n.id.clone(), all[&n.id].clone())));
    }
    let mut refused: Vec<_> = packages.values().filter_map(|p| refuse(&policy, p)).collect();
    refused.sort();
    assert!(packages.len() > 100, "cargo named only {} packages", packages.len());
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn what_the_policy_does_not_allow_is_refused() {
    let registry = "registry+https://github.com/rust-lang/crates.io-index";
    for (name, license, source, fine) in [
        ("a", Some("MIT OR GPL-3.0-only"), Some(registry), true),
        ("a", Some("MIT AND GPL-3.0-only"), Some(registry), false),
        ("a", Some("MIT/Apache-2.0"), Some(registry), true),
        ("a", Some("MPL-2.0"), Some(registry), false),
        ("webdriver", Some("MPL-2.0"), Some(registry), true),
        ("a", None, Some(registry), false),
        ("a", Some("MIT"), Some("git+https://example.com/a"), false),
        ("a", Some("whatever"), Some(registry), false),
    ] {
        let package = Package {
            id: String::new(),
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(Into::into),
            source: source.map(Into::into),
        };
        let said = refuse(&policy(), &package);
        assert_eq!(said.is_none(), fine, "{name} {license:?} {source:?}: {said:?}");
    }
}
