//! Files for what stands around the stack: proxies in front of it, systemd. The templates are the project's
//! `templates/deploy/*`, read when asked for, so that an operator may change them.

use std::fs;

use anyhow::Context as _;
use tera::{Context, Tera};

use crate::{
    Exit,
    args::{Place, Template},
    checks,
    stack::{self, Project, Stack},
};

impl Template {
    fn file(self) -> (&'static str, &'static str) {
        match self {
            Self::Caddy => ("Caddyfile", include_str!("../../templates/deploy/Caddyfile")),
            Self::Traefik => ("traefik.yaml", include_str!("../../templates/deploy/traefik.yaml")),
            Self::Nginx => ("nginx.conf", include_str!("../../templates/deploy/nginx.conf")),
            Self::Systemd => ("beaver.service", include_str!("../../templates/deploy/beaver.service")),
        }
    }
}

/// Prints the file, made from the settings.
///
/// # Errors
/// When a setting is unusable or the template is broken.
pub fn render(place: &Place, what: Template) -> anyhow::Result<Exit> {
    let stack = Stack::load(Project::find(place)?, &stack::shell())?;
    let (name, built_in) = what.file();
    let own = stack.project.dir.join("templates/deploy").join(name);
    let template = fs::read_to_string(own).unwrap_or_else(|_| built_in.to_owned());
    print!("{}", fill(&template, &stack)?);
    Ok(Exit::Ok)
}

fn fill(template: &str, stack: &Stack) -> anyhow::Result<String> {
    let public = stack.env.public_address()?;
    let portal = stack.env.url("BEAVER_PORTAL_URL")?;
    let [(_, portal_address), (_, router_address)] = checks::published(stack)?;
    let mut context = Context::new();
    context.insert("base_domain", public.base_domain());
    context.insert("portal_host", portal.host_str().unwrap_or_default());
    context.insert("https", &public.workspaces_secure());
    context.insert("portal_upstream", &reachable(portal_address));
    context.insert("router_upstream", &reachable(router_address));
    context.insert("project_dir", &stack.project.dir.display().to_string());
    context.insert("env_file", &stack.project.env_file.display().to_string());
    context.insert("program", &std::env::current_exe()?.display().to_string());
    Tera::one_off(template, &context, false).context("the template is broken")
}

/// An address a proxy on this host can connect to.
fn reachable(mut address: std::net::SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_filled_from_the_settings() {
        let project = Project { dir: "/srv/beaver".into(), env_file: "/srv/beaver/.env".into() };
        let file = [
            ("BEAVER_BASE_DOMAIN", "apps.example.com"),
            ("BEAVER_PORTAL_URL", "https://portal.example.com"),
            ("DEPLOY_PUBLIC_SCHEME", "https"),
            ("DEPLOY_PUBLIC_PORT", "443"),
            ("BEAVER_BIND", "0.0.0.0"),
        ];
        let file = file.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let stack = Stack::from_values(project, file, &std::collections::BTreeMap::new()).unwrap();
        for (what, facts) in [
            (
                Template::Caddy,
                &["portal.example.com {", "*.apps.example.com {", "127.0.0.1:3081", "127.0.0.1:8088"][..],
            ),
            (Template::Traefik, &["Host(`portal.example.com`)", "apps\\.example\\.com", "http://127.0.0.1:8088"]),
            (Template::Nginx, &["server_name *.apps.example.com;", "proxy_pass http://127.0.0.1:3081;"]),
            (Template::Systemd, &["WorkingDirectory=/srv/beaver", "--env-file /srv/beaver/.env up"]),
        ] {
            let text = fill(what.file().1, &stack).unwrap();
            assert!(!text.contains("{{") && !text.contains("}}"), "{text}");
            for fact in facts {
                assert!(text.contains(fact), "{what:?} has no {fact}:\n{text}");
            }
        }
    }
}
