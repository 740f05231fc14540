//! What confines containers on this host, and what kind of engine it is.

use std::fs;

use bollard::models::SystemInfo;
use deploy_control::engine::docker::about::{has_option, id_shift, is_rootless, refusal};

use super::Finding;
use crate::{text, ui::Ui};

/// What the engine and the kernel say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Surroundings {
    /// The engine, of itself.
    pub engine: SystemInfo,
    /// Whether the host's kernel enforces SELinux; absent where it has none.
    pub selinux: Option<bool>,
    /// Whether the host's kernel has AppArmor.
    pub apparmor: bool,
}

impl Surroundings {
    /// Looks at the kernel.
    pub fn of(engine: &SystemInfo) -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        Self {
            engine: engine.clone(),
            selinux: read("/sys/fs/selinux/enforce").map(|text| text == "1"),
            apparmor: read("/sys/module/apparmor/parameters/enabled").is_some_and(|text| text == "Y"),
        }
    }

    /// What that means.
    pub fn judge(&self, ui: &Ui) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(why) = refusal(&self.engine) {
            findings.push(Finding::bad(why));
        }
        if let Some(finding) = self.seccomp(ui) {
            findings.push(finding);
        }
        findings.extend(self.mandatory(ui));
        if is_rootless(&self.engine) {
            findings.push(Finding::good(text!(
                ui,
                "the engine is a rootless one: root in a container is you on this host",
                "引擎是 rootless 的:容器里的 root 就是主机上的你"
            )));
        }
        if let Ok(shift @ 1..) = id_shift(&self.engine) {
            findings.push(Finding::good(text!(
                ui,
                "the engine shifts the user ids of containers by {shift} (userns-remap): workspaces have theirs shifted; the \
                 services run without, since they share folders and the engine's socket with this host",
                "引擎把容器的用户号平移 {shift}(userns-remap):工作区照此平移;四个服务不平移,因为它们要和主机共用目录与引擎套接字"
            )));
        }
        if self.engine.operating_system.as_deref().is_some_and(|name| name.contains("Docker Desktop")) {
            findings.push(Finding::good(text!(
                ui,
                "Docker Desktop: keep the data in this distribution's own file system, not under /mnt",
                "Docker Desktop:数据目录要放在本发行版自己的文件系统里,不要放在 /mnt 下"
            )));
        }
        findings
    }

    /// Whether system calls are filtered: instances keep the engine's own profile.
    fn seccomp(&self, ui: &Ui) -> Option<Finding> {
        let options = self.engine.security_options.as_ref()?;
        let seccomp = options.iter().find(|option| option.starts_with("name=seccomp"));
        seccomp.is_none_or(|seccomp| seccomp.contains("profile=unconfined")).then(|| {
            Finding::bad(text!(
                ui,
                "the engine filters no system calls: take \"seccomp-profile\": \"unconfined\" out of /etc/docker/daemon.json, \
                 or use a kernel with seccomp",
                "引擎不过滤系统调用:请从 /etc/docker/daemon.json 去掉 \"seccomp-profile\": \"unconfined\",或换用支持 seccomp 的内核"
            ))
        })
    }

    /// SELinux and AppArmor.
    fn mandatory(&self, ui: &Ui) -> Vec<Finding> {
        let mut findings = Vec::new();
        match (self.selinux, has_option(&self.engine, "name=selinux")) {
            (Some(enforcing), true) => {
                let mode = if enforcing { "enforcing" } else { "permissive" };
                findings.push(Finding::good(text!(
                    ui,
                    "SELinux ({mode}) confines containers: compose.yaml has the data labelled for them (container_file_t), and \
                     deploy-control and router-proxy run outside of it; nothing else is needed",
                    "SELinux({mode})约束容器:compose.yaml 会给数据目录打上容器可用的标签(container_file_t),deploy-control 和 \
                     router-proxy 不受它约束;不需要再做什么"
                )));
            }
            (Some(true), false) => findings.push(Finding::good(text!(
                ui,
                "SELinux is enforcing, but not for containers: \"selinux-enabled\": true in /etc/docker/daemon.json adds it to \
                 what holds workspaces",
                "SELinux 处于 enforcing,但不约束容器:在 /etc/docker/daemon.json 里写 \"selinux-enabled\": true 可以多一层防护"
            ))),
            _ => {}
        }
        match (self.apparmor, has_option(&self.engine, "name=apparmor")) {
            (true, true) => findings.push(Finding::good(text!(
                ui,
                "AppArmor confines containers, under the engine's profile docker-default; nothing needs to be done",
                "AppArmor 以引擎自带的 docker-default 约束容器;不需要再做什么"
            ))),
            (true, false) if is_rootless(&self.engine) => {}
            (true, false) => findings.push(Finding::good(text!(
                ui,
                "this host has AppArmor, but the engine does not use it: sudo apt install apparmor, then restart the engine, \
                 adds it to what holds workspaces",
                "主机有 AppArmor,但引擎没有使用它:sudo apt install apparmor 后重启引擎,可以多一层防护"
            ))),
            _ => {}
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(options: &[&str]) -> SystemInfo {
        let options = ["name=seccomp,profile=default"].iter().chain(options).map(|option| (*option).to_owned());
        SystemInfo { security_options: Some(options.collect()), ..SystemInfo::default() }
    }

    fn lines(surroundings: &Surroundings) -> Vec<(bool, String)> {
        surroundings.judge(&Ui::plain()).into_iter().map(|finding| (finding.ok, finding.line)).collect()
    }

    #[test]
    fn a_plain_host_has_nothing_to_say() {
        assert_eq!(lines(&Surroundings { engine: engine(&[]), ..Surroundings::default() }), []);
        assert_eq!(lines(&Surroundings { engine: engine(&[]), selinux: Some(false), apparmor: false }), []);
    }

    #[test]
    fn each_kind_of_host_is_told_what_it_needs_in_one_line() {
        let cases = [
            (engine(&["name=selinux"]), Some(true), false, true, "container_file_t"),
            (engine(&["name=selinux"]), Some(false), false, true, "(permissive)"),
            (engine(&[]), Some(true), false, true, "selinux-enabled"),
            (engine(&["name=apparmor"]), None, true, true, "docker-default"),
            (engine(&[]), None, true, true, "apt install apparmor"),
            (engine(&["name=rootless"]), None, true, true, "rootless"),
            (SystemInfo { security_options: Some(Vec::new()), ..engine(&[]) }, None, false, false, "no system calls"),
            (
                SystemInfo { security_options: Some(vec!["name=seccomp,profile=unconfined".into()]), ..engine(&[]) },
                None,
                false,
                false,
                "seccomp-profile",
            ),
            (SystemInfo { memory_limit: Some(false), ..engine(&[]) }, None, false, false, "cannot limit memory"),
            (
                SystemInfo { docker_root_dir: Some("/d/100000.100000".into()), ..engine(&["name=userns"]) },
                None,
                false,
                true,
                "by 100000",
            ),
            (engine(&["name=userns"]), None, false, false, "/etc/subuid"),
            (SystemInfo { operating_system: Some("Docker Desktop".into()), ..engine(&[]) }, None, false, true, "/mnt"),
        ];
        for (engine, selinux, apparmor, ok, word) in cases {
            let found = lines(&Surroundings { engine, selinux, apparmor });
            assert!(matches!(&found[..], [(good, line)] if *good == ok && line.contains(word)), "{word}: {found:?}");
            assert!(!found[0].1.contains('\n'));
        }
    }
}
