//! What an engine says of itself, as far as it decides whether instances can be run on it as they must be.

use std::path::Path;

use bollard::models::SystemInfo;

/// Whether one of its security options begins with this: `name=rootless`, `name=selinux`, `name=userns`.
pub fn has_option(info: &SystemInfo, option: &str) -> bool {
    info.security_options.iter().flatten().any(|there| there == option || there.starts_with(&format!("{option},")))
}

/// Whether it runs as a user without privileges.
pub fn is_rootless(info: &SystemInfo) -> bool {
    has_option(info, "name=rootless")
}

/// By how much the ids of users and groups in a container are shifted on the host (`userns-remap`); 0 where they are not.
///
/// # Errors
/// When it cannot be told, or is not one number: an instance's folders could not be given to it.
pub fn id_shift(info: &SystemInfo) -> Result<u32, String> {
    if !has_option(info, "name=userns") {
        return Ok(0);
    }
    // The engine keeps what belongs to each mapping in a folder of its own, which it names after it: it says so nowhere else.
    let root = Path::new(info.docker_root_dir.as_deref().unwrap_or_default());
    let name = root.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.split_once('.').map(|(users, groups)| (users.parse::<u32>(), groups.parse::<u32>())) {
        Some((Ok(users), Ok(groups))) if users == groups => Ok(users),
        _ => Err(format!(
            "the engine shifts user ids (userns-remap), but not users and groups by one number that it tells ({name:?}): give \
             its user the same first number in /etc/subuid and /etc/subgid"
        )),
    }
}

/// Why no instance may be run on it, and what cures that; `None` when nothing stands against it.
///
/// An engine takes a limit that it cannot keep with a warning, and runs the container without.
pub fn refusal(info: &SystemInfo) -> Option<String> {
    let limits = [("memory", info.memory_limit), ("processes", info.pids_limit), ("processors", info.cpu_cfs_quota)];
    let missing: Vec<_> = limits.into_iter().filter(|(_, kept)| *kept == Some(false)).map(|(name, _)| name).collect();
    if missing.is_empty() {
        return id_shift(info).err();
    }
    let cure = match (is_rootless(info), info.cgroup_version.map(|version| version.to_string()).as_deref()) {
        (true, Some("1")) => {
            "a rootless engine keeps limits only with control groups of the second kind: boot the host with \
             systemd.unified_cgroup_hierarchy=1, or use an engine that root runs"
        }
        (true, _) => {
            "give the user its control groups (in /etc/systemd/system/user@.service.d/delegate.conf: [Service] \
             Delegate=cpu cpuset io memory pids; then systemctl daemon-reload and sign in again), or use an engine that root runs"
        }
        (false, _) => "boot the host's kernel with these control groups (cgroup_enable=memory)",
    };
    Some(format!(
        "the engine cannot limit {}, so that one instance could take the whole host: {cure}",
        missing.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use bollard::models::SystemInfoCgroupVersionEnum;

    use super::*;

    fn info(options: &[&str]) -> SystemInfo {
        SystemInfo {
            memory_limit: Some(true),
            pids_limit: Some(true),
            cpu_cfs_quota: Some(true),
            security_options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            ..SystemInfo::default()
        }
    }

    #[test]
    fn an_option_is_its_whole_name() {
        let info = info(&["name=seccomp,profile=default", "name=userns"]);
        assert!(has_option(&info, "name=userns") && has_option(&info, "name=seccomp"));
        assert!(!has_option(&info, "name=user") && !is_rootless(&info));
    }

    #[test]
    fn an_engine_that_keeps_every_limit_is_not_refused_rootless_or_not() {
        assert_eq!(refusal(&info(&[])), None);
        assert_eq!(refusal(&info(&["name=rootless"])), None);
        // One that does not say is taken at its word.
        assert_eq!(refusal(&SystemInfo::default()), None);
    }

    #[test]
    fn the_shift_is_the_name_of_its_folder() {
        let at = |root: &str| SystemInfo { docker_root_dir: Some(root.into()), ..info(&["name=userns"]) };
        assert_eq!(id_shift(&info(&[])), Ok(0));
        assert_eq!(id_shift(&at("/var/lib/docker/165536.165536")), Ok(165_536));
        for unclear in ["/var/lib/docker/165536.231072", "/var/lib/docker", "/var/lib/docker/a.b"] {
            assert!(refusal(&at(unclear)).unwrap().contains("/etc/subgid"), "{unclear}");
        }
    }

    #[test]
    fn what_it_cannot_limit_is_named_with_its_cure() {
        let rootless = |version| SystemInfo {
            pids_limit: Some(false),
            memory_limit: Some(false),
            cgroup_version: Some(version),
            ..info(&["name=rootless"])
        };
        let first = refusal(&rootless(SystemInfoCgroupVersionEnum::_1)).unwrap();
        assert!(first.contains("limit memory, processes, so") && first.contains("unified_cgroup_hierarchy"), "{first}");
        let second = refusal(&rootless(SystemInfoCgroupVersionEnum::_2)).unwrap();
        assert!(second.contains("Delegate="), "{second}");
        let kernel = refusal(&SystemInfo { memory_limit: Some(false), ..info(&[]) }).unwrap();
        assert!(kernel.contains("cgroup_enable=memory") && !kernel.contains('\n'), "{kernel}");
    }
}
