//! The documents beside the code: what they name must be there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use beaver_tests::paths;

/// The text of each document at the top, and each README in a folder of ours, by path.
fn documents() -> Vec<(PathBuf, String)> {
    let listed = Command::new("git")
        .args(["-c", "core.quotePath=false", "ls-files", "*.md"])
        .current_dir(paths::root())
        .output()
        .expect("git lists the files");
    let all: Vec<_> = String::from_utf8(listed.stdout)
        .expect("names are UTF-8")
        .lines()
        .map(|name| paths::root().join(name))
        .map(|path| (path.clone(), fs::read_to_string(path).expect("a listed file is there")))
        .collect();
    assert!(all.len() >= 10, "only {} documents found", all.len());
    all
}

/// The targets of a document's links to files, without fragments.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split(')').next()?.split('#').next()?;
        (!target.is_empty() && !target.contains("://")).then_some(target)
    })
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    let mut seen = 0;
    for (path, text) in documents() {
        for target in links(&text) {
            seen += 1;
            let there = path.parent().unwrap_or(Path::new("/")).join(target);
            assert!(there.exists(), "{} links to {target}, which is not there", path.display());
        }
    }
    assert!(seen > 5, "only {seen} links found");
}

#[test]
fn the_guide_explains_every_setting_with_its_default() {
    let guide = fs::read_to_string(paths::root().join("部署指南.md")).expect("the guide is there");
    let rows: Vec<&str> = guide.lines().filter(|line| line.starts_with("| `")).collect();
    for setting in settings::settings() {
        let named = format!("`{}`", setting.key);
        let row = rows.iter().find(|row| row.split('|').nth(1).is_some_and(|names| names.contains(&named)));
        let row = row.unwrap_or_else(|| panic!("部署指南.md does not explain {}", setting.key));
        let secret = setting.default.starts_with("change-me");
        let default = if secret {
            "生成"
        } else if setting.default.is_empty() {
            "空"
        } else {
            &setting.default
        };
        let told: Vec<&str> = row.split('|').nth(2).unwrap_or_default().split_whitespace().collect();
        let place = row.split('|').nth(1).unwrap_or_default().split_whitespace().position(|name| name == named);
        let told = place.and_then(|place| told.get(place)).map(|told| told.trim_matches('`'));
        assert!(told == Some(default), "部署指南.md tells {told:?} and not {default:?} for {}", setting.key);
    }
}
