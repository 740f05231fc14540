//! What every page must hold: readable, fitting, labelled, usable by keyboard; light and dark, wide and narrow.

use anyhow::Context;
use serde_json::{Value, json};

use crate::browser::{Browser, View};

/// What of axe-core counts: WCAG 2.2 A and AA, and what its makers hold to be good practice.
const TAGS: [&str; 6] = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

/// Texts and fields that stick out of the page or are cut off by their own box.
const OVERFLOW: &str = r"
    const wide = document.documentElement.scrollWidth - innerWidth;
    const out = [];
    if (wide > 0) out.push('the page is ' + wide + ' px wider than the window');
    for (const e of document.querySelectorAll('body *')) {
        const box = e.getBoundingClientRect(), style = getComputedStyle(e);
        if (!box.width || !box.height || style.visibility === 'hidden') continue;
        const scrolls = p => { for (; p && p !== document.body; p = p.parentElement) {
            if (/auto|scroll|hidden|clip/.test(getComputedStyle(p).overflowX)) return true; } return false; };
        const name = e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + (e.className && e.className.split ? '.' + e.className.split(' ')[0] : '');
        if (box.right > innerWidth + 1 && !scrolls(e.parentElement) && style.position !== 'absolute') out.push(name + ' ends at ' + Math.round(box.right));
        const text = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (text && /hidden|clip/.test(style.overflowX) && e.scrollWidth > e.clientWidth + 1 && style.textOverflow !== 'ellipsis' && e.clientWidth > 2)
            out.push(name + ' cuts its text');
    }
    return out.slice(0, 8);
";

/// What the keyboard reaches, in the order of the document, and whether the order is left alone.
const FOCUSABLE: &str = r"
    const all = [...document.querySelectorAll('a[href],button,input,select,textarea,summary,[tabindex]')].filter(e =>
        !e.disabled && e.tabIndex >= 0 && e.type !== 'hidden' && e.checkVisibility({visibilityProperty: true})
        && !(e.type === 'radio' && e.name && document.querySelector(`input[type=radio][name='${CSS.escape(e.name)}']:checked`) && !e.checked)
        && !(e.type === 'radio' && e.name && !document.querySelector(`input[type=radio][name='${CSS.escape(e.name)}']:checked`)
             && e !== document.querySelector(`input[type=radio][name='${CSS.escape(e.name)}']`)));
    all.forEach((e, i) => e.dataset.testOrder = i);
    // The browser goes on from where it last was: from before everything else, then.
    const start = document.createElement('span');
    start.tabIndex = -1;
    document.body.prepend(start);
    start.focus();
    start.remove();
    return {count: all.length, forced: all.filter(e => e.tabIndex > 0).length};
";

/// Which of them has the focus, and whether a person can see that.
const FOCUSED: &str = r"
    const e = document.activeElement;
    if (!e || e === document.body) return null;
    const s = getComputedStyle(e);
    const ring = (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0) || s.boxShadow !== 'none';
    return {order: e.dataset.testOrder === undefined ? null : +e.dataset.testOrder, ring,
            name: e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + ' ' + (e.innerText || e.name || '').slice(0, 30)};
";

/// Checks the page that the browser shows, in every [`View`], and keeps a picture of each.
///
/// # Errors
/// Names everything that is wrong with it.
pub async fn check(browser: &Browser, axe: &str, name: &str) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for view in View::ALL {
        browser.look(view).await?;
        browser.picture(name, view).await?;
        let shown = format!("{} px, {}", view.width, if view.dark { "dark" } else { "light" });
        for violation in run_axe(browser, axe).await.with_context(|| format!("axe-core on {name}"))? {
            wrong.push(format!("{shown}: {violation}"));
        }
        for overflow in browser.script(OVERFLOW).await?.as_array().into_iter().flatten() {
            wrong.push(format!("{shown}: {}", overflow.as_str().unwrap_or_default()));
        }
    }
    browser.look(View::ALL[0]).await?;
    wrong.extend(keyboard(browser).await?);
    anyhow::ensure!(wrong.is_empty(), "{name}: {} faults: {}", wrong.len(), wrong.join("; "));
    Ok(())
}

/// What axe-core finds.
///
/// # Errors
/// When it cannot be run.
pub async fn run_axe(browser: &Browser, axe: &str) -> anyhow::Result<Vec<String>> {
    let run = format!(
        "const done = arguments[arguments.length - 1], tags = arguments[0];
         if (!window.axe) {{ {axe} }}
         axe.run(document, {{runOnly: {{type: 'tag', values: tags}}, resultTypes: ['violations']}})
            .then(r => done({{violations: r.violations.map(v => [v.id, v.help, v.nodes.slice(0, 3).map(n =>
                n.target.join(' ') + ' (' + (n.any[0] || n.all[0] || n.none[0] || {{message: ''}}).message + ')')])}}))
            .catch(e => done({{error: String(e)}}));"
    );
    let found = browser.client().execute_async(&run, vec![json!(TAGS)]).await?;
    anyhow::ensure!(found["error"].is_null(), "{}", found["error"]);
    let violations = found["violations"].as_array().context("axe-core said nothing")?;
    Ok(violations
        .iter()
        .map(|v| format!("{} ({}): {}", v[0].as_str().unwrap_or_default(), v[1].as_str().unwrap_or_default(), v[2]))
        .collect())
}

/// Goes through the page by Tab: everything is reached, in the document's order, and seen to be reached.
async fn keyboard(browser: &Browser) -> anyhow::Result<Vec<String>> {
    let all = browser.script(FOCUSABLE).await?;
    let count = all["count"].as_u64().unwrap_or_default();
    let mut wrong = Vec::new();
    if all["forced"] != json!(0) {
        wrong.push(format!("{} elements force the order of the keyboard", all["forced"]));
    }
    let mut last = -1;
    let mut reached = 0;
    for _ in 0..count {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            browser.devtools("Input.dispatchKeyEvent", key).await?;
        }
        let Value::Object(focused) = browser.script(FOCUSED).await? else { continue };
        let name = focused["name"].as_str().unwrap_or_default().to_owned();
        let Some(order) = focused["order"].as_i64() else {
            wrong.push(format!("the keyboard reaches {name}, which is not listed"));
            continue;
        };
        if order < last {
            wrong.push(format!("the keyboard comes to {name} out of order"));
        }
        if focused["ring"] != json!(true) {
            wrong.push(format!("nothing shows that {name} has the focus"));
        }
        last = order;
        reached += 1;
    }
    if reached < count {
        wrong.push(format!("the keyboard reaches {reached} of {count} elements"));
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python;

    async fn faults(html: &str) -> String {
        let browser = Browser::start("en").await.unwrap();
        let page = format!(
            "data:text/html;charset=utf-8,<!doctype html><html lang=en><title>t</title><meta name=viewport content='width=device-width'>{html}"
        );
        browser.open(&page.replace('#', "%23")).await.unwrap();
        let result = check(&browser, &python::axe().await.unwrap(), "self-test").await;
        browser.close().await.unwrap();
        result.map_or_else(|e| format!("{e:#}"), |()| String::new())
    }

    #[tokio::test]
    async fn a_good_page_passes_and_each_planted_fault_is_found() {
        let good = "<main><h1>Good</h1><p>Text</p><label>Name <input></label><button>Go</button></main>";
        assert_eq!(faults(good).await, "");
        for (fault, said) in [
            ("<p style='color:#999;background:#fff'>pale</p>", "color-contrast"),
            ("<div style='width:1500px;background:#eee'>wide</div>", "wider than the window"),
            ("<input>", "label"),
            ("<button tabindex=3>first</button>", "force the order"),
            ("<button style='outline:none'>ringless</button>", "has the focus"),
            ("<p style='width:60px;overflow:hidden;white-space:nowrap'>a text that is cut off</p>", "cuts its text"),
        ] {
            let found = faults(&good.replace("<p>Text</p>", fault)).await;
            assert!(found.contains(said), "{fault}: {found}");
        }
    }
}
