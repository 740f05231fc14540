//! The documents beside the code: what they name must be there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use beaver_tests::paths;

/// The text of each file of ours whose path fits, by that path.
fn files(patterns: &[&str]) -> Vec<(PathBuf, String)> {
    let listed = Command::new("git")
        .args(["-c", "core.quotePath=false", "ls-files"])
        .args(patterns)
        .current_dir(paths::root())
        .output()
        .expect("git lists the files");
    String::from_utf8(listed.stdout)
        .expect("names are UTF-8")
        .lines()
        .map(|name| (name.into(), fs::read_to_string(paths::root().join(name)).expect("a listed file is there")))
        .collect()
}

/// The text of each document at the top, and each README in a folder of ours, by path.
fn documents() -> Vec<(PathBuf, String)> {
    let all = files(&["*.md"]);
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
            let there = paths::root().join(path.parent().unwrap_or(Path::new(""))).join(target);
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

/// Where programs and people are refused. `*` stands for folders in folders too.
const REFUSING: [&str; 5] =
    ["services/*/src/*.rs", "crates/*/src/*.rs", "router-proxy/src/*.rs", "app-instance/src/*.rs", "shim/src/*.rs"];
/// The calls that refuse, and how many literals stand before the code: none, or the field's name. A quotation mark at a
/// call's end says that its first argument is a literal.
const CALLS: [(&str, usize); 7] = [
    ("Problem::new(", 0),
    ("Problem::field(", 1),
    ("Self::new(", 0),
    ("::bad(", 0),
    ("not_found(", 0),
    ("problem(", 0),
    ("refused(\"", 0),
];
/// What the gateway says before its code: the `type` of OpenAI's errors.
const TYPES: [&str; 2] = ["backend_error", "invalid_request_error"];

/// The rest of the code after each `mark`; a quotation mark at its end belongs to the rest.
fn behind<'a>(code: &'a str, mark: &'static str) -> impl Iterator<Item = &'a str> {
    code.match_indices(mark).map(move |(at, _)| &code[at + mark.trim_end_matches('"').len()..])
}

/// The code up to where the parenthesis or brace that was opened before it is closed.
fn inside(code: &str, open: char, close: char) -> &str {
    let mut depth = 1;
    let end = code.char_indices().find(|(_, c)| {
        depth += i32::from(*c == open) - i32::from(*c == close);
        depth == 0
    });
    end.map_or(code, |(at, _)| &code[..at])
}

/// The literals that are written as error codes are, each behind the code before it.
fn words(code: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut pieces = code.split('"');
    std::iter::from_fn(move || Some((pieces.next()?, pieces.next()?))).filter(|(_, word)| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !TYPES.contains(word)
    })
}

/// The error codes in a source: of calls that refuse, of functions that name them, of whatever is called `code`.
fn error_codes(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for (call, before) in CALLS {
        found.extend(behind(source, call).filter_map(|rest| words(inside(rest, '(', ')')).nth(before)));
    }
    for rest in behind(source, "fn code(").chain(behind(source, "fn own_code(")) {
        let body = inside(rest.split_once('{').map_or("", |(_, body)| body), '{', '}');
        // The names of languages and of kinds of providers are no errors; they have hyphens.
        let are_names = body.split('"').skip(1).step_by(2).any(|literal| literal.contains('-'));
        found.extend(words(body).filter(|_| !are_names));
    }
    for rest in behind(source, "let code = ").chain(behind(source, "let (code, ")) {
        let statement = rest.split(";\n").next().unwrap_or_default();
        // First in a tuple, or all there is in a block: what is deeper in has another meaning.
        let first = |before: &str| before.trim_end().ends_with(" (") || before.trim_end().ends_with('{');
        found.extend(words(statement).filter(|(before, _)| first(before)));
    }
    for rest in behind(source, "code: ") {
        let value = rest.strip_prefix("Some(").unwrap_or(rest);
        let constant = format!("const {}: &str = ", value.split('.').next().unwrap_or_default());
        let value = source.split_once(&constant).map_or(value, |(_, value)| value);
        found.extend(words(value).next().filter(|(before, _)| before.is_empty()));
    }
    found.into_iter().map(|(_, word)| word).collect()
}

#[test]
fn the_page_of_error_codes_has_each_of_them_and_no_other() {
    let page = fs::read_to_string(paths::root().join("ERROR-CODES.md")).expect("the page is there");
    let mut explained = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert!(cells.len() == 4, "not a code, a status and two explanations: {row}");
        assert!(explained.insert(cells[0].trim_matches('`').to_owned()), "explained twice: {row}");
    }
    let mut refused = BTreeSet::new();
    for (path, text) in files(&REFUSING) {
        if !path.to_string_lossy().contains("test") {
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
            refused.extend(error_codes(code).into_iter().map(str::to_owned));
        }
    }
    let missing: Vec<_> = refused.difference(&explained).collect();
    let left_over: Vec<_> = explained.difference(&refused).collect();
    assert!(missing.is_empty(), "ERROR-CODES.md does not explain {missing:?}");
    assert!(left_over.is_empty(), "ERROR-CODES.md explains {left_over:?}, which nothing refuses with");
}
