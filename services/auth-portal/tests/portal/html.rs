//! Whether a page is well-formed and says what assistive technology needs. Stricter than a browser: our own templates
//! close what they open.

use std::collections::{BTreeMap, BTreeSet};

const VOID: [&str; 8] = ["br", "hr", "img", "input", "link", "meta", "area", "col"];

#[derive(Debug, Clone, Default)]
struct Tag {
    name: String,
    closing: bool,
    closed: bool,
    attributes: BTreeMap<String, String>,
}

impl Tag {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }
}

enum Token {
    Tag(Tag),
    Text(String),
}

pub fn unescape(text: &str) -> String {
    text.replace("&#60;", "<").replace("&#62;", ">").replace("&#34;", "\"").replace("&#39;", "'").replace("&#38;", "&")
}

fn tokens(page: &str) -> Vec<Token> {
    let (mut rest, mut found) = (page, Vec::new());
    while let Some(at) = rest.find('<') {
        let (text, tail) = rest.split_at(at);
        if !text.trim().is_empty() {
            found.push(Token::Text(text.to_owned()));
        }
        let end = tail.find('>').unwrap_or_else(|| panic!("a tag without an end: {tail}"));
        found.push(Token::Tag(tag(&tail[1..end])));
        rest = &tail[end + 1..];
    }
    assert!(rest.trim().is_empty(), "text after the end: {rest}");
    found
}

fn tag(inner: &str) -> Tag {
    let (inner, closing) = inner.strip_prefix('/').map_or((inner, false), |inner| (inner, true));
    let (inner, closed) = inner.strip_suffix('/').map_or((inner, false), |inner| (inner, true));
    let name: String = inner.chars().take_while(|c| !c.is_whitespace()).collect();
    let mut rest = inner[name.len()..].trim_start();
    let mut attributes = BTreeMap::new();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, tail) = rest.split_at(end);
        assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || "-_:".contains(c)), "a strange attribute: {inner}");
        let value = match tail.strip_prefix("=\"") {
            Some(quoted) => {
                let end = quoted.find('"').unwrap_or_else(|| panic!("an open quote: {inner}"));
                rest = quoted[end + 1..].trim_start();
                unescape(&quoted[..end])
            }
            None => {
                assert!(!tail.starts_with('='), "an unquoted value: {inner}");
                rest = tail.trim_start();
                String::new()
            }
        };
        assert!(attributes.insert(key.to_owned(), value).is_none(), "{key} twice: {inner}");
    }
    Tag { name: name.to_ascii_lowercase(), closing, closed, attributes }
}

/// Panics with what is wrong.
pub fn check(page: &str) {
    let tokens = tokens(page);
    let (mut open, mut ids, mut labels, mut refs) = (Vec::<Tag>::new(), BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut controls = Vec::new();
    let mut headings = Vec::new();
    let (mut html_lang, mut title, mut main) = (None, 0, 0);
    // For each open element, whether a text came in it.
    let mut texts: Vec<bool> = Vec::new();
    for token in &tokens {
        let tag = match token {
            Token::Text(_) => {
                texts.iter_mut().for_each(|text| *text = true);
                continue;
            }
            Token::Tag(tag) => tag,
        };
        if tag.name.starts_with('!') {
            continue;
        }
        if tag.closing {
            let opened = open.pop().unwrap_or_else(|| panic!("</{}> closes nothing", tag.name));
            assert_eq!(opened.name, tag.name, "</{}> closes <{}>", tag.name, opened.name);
            let text = texts.pop().unwrap();
            if matches!(
                tag.name.as_str(),
                "a" | "button" | "h1" | "h2" | "label" | "legend" | "summary" | "title" | "th"
            ) {
                assert!(text || opened.get("aria-label").is_some(), "an empty <{}>: {opened:?}", tag.name);
            }
            continue;
        }
        if let Some(id) = tag.get("id") {
            assert!(ids.insert(id.to_owned()), "the id {id} twice");
        }
        for name in tag.attributes.keys() {
            assert!(!name.starts_with("on") && name != "style", "{name} is refused by the policy: {tag:?}");
        }
        for key in ["href", "src", "action"] {
            let target = tag.get(key).unwrap_or("/");
            let workspace = target.starts_with("http://alice.localhost:8088/");
            assert!(target.starts_with('/') || target.starts_with('#') || workspace, "{key} leads elsewhere: {target}");
        }
        match tag.name.as_str() {
            "html" => html_lang = tag.get("lang").map(str::to_owned),
            "title" => title += 1,
            "main" => main += 1,
            "h1" | "h2" | "h3" => headings.push(tag.name.clone()),
            "label" => {
                labels.extend(tag.get("for").map(str::to_owned));
            }
            "input" | "select" | "textarea" if tag.get("type") != Some("hidden") => {
                let wrapped = open.iter().any(|outer| outer.name == "label");
                controls.push((tag.clone(), wrapped));
            }
            "script" => assert!(tag.get("src").is_some(), "an inline script"),
            "style" => panic!("an inline style"),
            "img" => assert!(tag.get("alt").is_some(), "an image without words"),
            "form" => assert_eq!(tag.get("method"), Some("post"), "a form that changes nothing? {tag:?}"),
            _ => {}
        }
        refs.extend(tag.get("aria-describedby").unwrap_or_default().split_whitespace().map(str::to_owned));
        if !VOID.contains(&tag.name.as_str()) && !tag.closed {
            open.push(tag.clone());
            texts.push(false);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    assert!(matches!(html_lang.as_deref(), Some("en" | "zh-Hans")), "lang is {html_lang:?}");
    assert_eq!((title, main), (1, 1), "one title, one main");
    assert_eq!(headings.iter().filter(|h| *h == "h1").count(), 1, "one h1: {headings:?}");
    assert_eq!(headings[0], "h1");
    for (control, wrapped) in controls {
        let named = wrapped || control.get("id").is_some_and(|id| labels.contains(id));
        assert!(named, "without a label: {control:?}");
        if control.get("aria-invalid").is_some() {
            assert!(control.get("aria-describedby").is_some(), "wrong, but why? {control:?}");
        }
    }
    for id in refs {
        assert!(ids.contains(&id), "aria-describedby names {id}, which is not there");
    }
}

/// The value of the input with this name: of a chosen one, where it is a choice.
pub fn value(page: &str, name: &str) -> Option<String> {
    let tags = tokens(page).into_iter().filter_map(|token| match token {
        Token::Tag(tag) if tag.name == "input" && tag.get("name") == Some(name) => Some(tag),
        _ => None,
    });
    tags.filter(|tag| tag.get("type") != Some("radio") || tag.get("checked").is_some())
        .map(|tag| tag.get("value").unwrap_or_default().to_owned())
        .next()
}

/// The id of the control that has the cursor first.
pub fn focused(page: &str) -> Option<String> {
    tokens(page).into_iter().find_map(|token| match token {
        Token::Tag(tag) if tag.get("autofocus").is_some() => tag.get("id").map(str::to_owned),
        _ => None,
    })
}

/// The text of the element with this id, without that of elements in it.
pub fn of_id(page: &str, id: &str) -> String {
    let mut tokens = tokens(page).into_iter();
    while let Some(token) = tokens.next() {
        if matches!(&token, Token::Tag(tag) if tag.get("id") == Some(id)) {
            return match tokens.next() {
                Some(Token::Text(text)) => unescape(text.trim()),
                _ => String::new(),
            };
        }
    }
    panic!("nothing has the id {id}")
}

pub fn text(page: &str) -> String {
    let words: Vec<String> = tokens(page)
        .into_iter()
        .filter_map(|token| match token {
            Token::Text(text) => Some(unescape(text.trim())),
            Token::Tag(_) => None,
        })
        .collect();
    words.join(" ")
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let page = |inner: &str| {
        format!(
            "<!doctype html><html lang=\"en\"><head><title>t</title></head><body><main><h1>x</h1>{inner}</main></body></html>"
        )
    };
    check(&page("<p>fine</p>"));
    for bad in [
        "<p>open",
        "<p>x</b>",
        "<h1>second</h1>",
        "<input name=\"a\" type=\"text\">",
        "<input id=\"a\" name=\"a\"><label for=\"b\">b</label>",
        "<p id=\"a\">x</p><p id=\"a\">y</p>",
        "<p onclick=\"x\">x</p>",
        "<p style=\"x\">x</p>",
        "<script>alert(1)</script>",
        "<a href=\"https://elsewhere.example/\">x</a>",
        "<button></button>",
        "<label>a<input aria-describedby=\"none\"></label>",
        "<form method=\"get\" action=\"/x\"></form>",
    ] {
        let page = page(bad);
        assert!(std::panic::catch_unwind(|| check(&page)).is_err(), "{bad}");
    }
}
