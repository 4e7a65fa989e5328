//! `cargo xtask arrows`: who may know whom.
//!
//! ```text
//! ebus-cli, examples -> ebus -> everything below, backends other than memory by feature
//! backends, pool, envelope, layers -> ebus-core
//! ebus-testkit -> ebus-core, ebus-pool, ebus-memory
//! ```
//! Dev-dependencies are free: every backend is tested with the testkit, which knows the pool.

use cargo_metadata::{Dependency, DependencyKind, Package};

use crate::workspace::Workspace;

const BELOW_FACADE: &[&str] =
    &["ebus-core", "ebus-pool", "ebus-envelope", "ebus-layers", "ebus-memory", "ebus-kafka", "ebus-nats"];

/// The facade has these only by feature; memory is always there.
const BY_FEATURE: &[&str] = &["ebus-kafka", "ebus-nats"];

/// What must not be in a crate whatever else it needs.
const FOREIGN: &[(&str, &[&str])] =
    &[("ebus-core", &["rdkafka", "async-nats", "tokio"]), ("ebus-pool", &["rdkafka", "async-nats", "serde"])];

/// What a crate may depend on of ours; `None` when anything.
fn allowed(name: &str, example: bool) -> Option<&'static [&'static str]> {
    match name {
        "ebus-core" => Some(&[]),
        "ebus-pool" | "ebus-envelope" | "ebus-layers" | "ebus-memory" | "ebus-kafka" | "ebus-nats" => {
            Some(&["ebus-core"])
        }
        "ebus-testkit" => Some(&["ebus-core", "ebus-pool", "ebus-memory"]),
        "ebus" => Some(BELOW_FACADE),
        "ebus-cli" | "ebus-chaos" => Some(&["ebus", "ebus-testkit"]),
        "ebus-bench" | "xtask" => None,
        _ if example => Some(&["ebus"]),
        // A crate that nobody has thought about yet depends on nothing.
        _ => Some(&[]),
    }
}

/// Prints every arrow that should not be; true when there is none.
pub(crate) fn run(workspace: &Workspace) -> bool {
    let packages = workspace.packages();
    let ours: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let wrong: Vec<String> = packages.iter().flat_map(|package| violations(package, &ours)).collect();
    for line in &wrong {
        eprintln!("{line}");
    }
    if wrong.is_empty() {
        println!("{} crates, no arrow that should not be", packages.len());
    }
    wrong.is_empty()
}

fn violations(package: &Package, ours: &[&str]) -> Vec<String> {
    let example = package.manifest_path.components().any(|part| part.as_str() == "examples");
    let dependencies: Vec<&Dependency> = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .collect();
    let name = package.name.as_str();
    let arrows = dependencies.iter().map(|dependency| (dependency.name.as_str(), dependency.optional));
    judge(name, example, arrows, ours)
}

fn judge<'a>(
    name: &str,
    example: bool,
    arrows: impl Iterator<Item = (&'a str, bool)>,
    ours: &[&str],
) -> Vec<String> {
    let foreign = FOREIGN.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, names)| names);
    let mut wrong = Vec::new();
    for (to, optional) in arrows {
        let forbidden = allowed(name, example).is_some_and(|allowed| !allowed.contains(&to));
        if ours.contains(&to) && forbidden {
            wrong.push(format!("{name} -> {to}: not one of {:?}", allowed(name, example).unwrap_or(&[])));
        } else if name == "ebus" && BY_FEATURE.contains(&to) && !optional {
            wrong.push(format!("{name} -> {to}: must be optional, behind a feature"));
        } else if foreign.contains(&to) {
            wrong.push(format!("{name} -> {to}: must do without it"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &[&str] = &["ebus", "ebus-core", "ebus-pool", "ebus-kafka", "ebus-testkit", "ebus-new"];

    fn wrong(name: &str, arrows: &[(&str, bool)]) -> usize {
        judge(name, false, arrows.iter().copied(), OURS).len()
    }

    #[test]
    fn arrows_of_the_design_are_right() {
        assert_eq!(wrong("ebus-kafka", &[("ebus-core", false), ("rdkafka", false)]), 0);
        assert_eq!(wrong("ebus", &[("ebus-core", false), ("ebus-kafka", true)]), 0);
        assert_eq!(wrong("xtask", &[("ebus-testkit", false)]), 0);
    }

    #[test]
    fn every_other_arrow_is_wrong() {
        assert_eq!(wrong("ebus-core", &[("ebus-pool", false)]), 1);
        assert_eq!(wrong("ebus-kafka", &[("ebus-pool", true)]), 1);
        assert_eq!(wrong("ebus-pool", &[("serde", false)]), 1);
        assert_eq!(wrong("ebus", &[("ebus-kafka", false)]), 1);
        assert_eq!(wrong("ebus", &[("ebus-testkit", false)]), 1);
        assert_eq!(wrong("ebus-new", &[("ebus-core", false)]), 1);
    }
}
