//! What came of an attack, as a table and as JSON.

use ::attack::{Outcome, Report};
use serde::Serialize;

use super::rows::Row;
use crate::{status::table, ui::Ui};

/// The longest cell of the table, in characters: the whole of it is in the JSON.
const LONGEST: usize = 60;

/// What a row, and the whole, comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every attempt was refused, and every control succeeded.
    Held,
    /// An attempt or a control could not be made, or a control was refused: nothing is shown.
    NotTried,
    /// An attempt succeeded.
    GotThrough,
}

/// A row of the table, filled in.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Its name.
    pub id: &'static str,
    /// What was tried, in English and in Chinese.
    #[serde(serialize_with = "english")]
    pub what: [&'static str; 2],
    /// What should happen.
    #[serde(serialize_with = "english")]
    pub must: [&'static str; 2],
    /// What happened.
    pub happened: String,
    /// What happened where it is allowed.
    pub control: String,
    /// What that means.
    pub verdict: Verdict,
}

fn english<S: serde::Serializer>(texts: &[&'static str; 2], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(texts[0])
}

/// The whole of it.
#[derive(Debug, Serialize)]
pub struct Table {
    /// Everything together: the worst of the rows.
    pub verdict: Verdict,
    /// The defence that was taken away, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without: Option<&'static str>,
    /// Whether instances have a network: `BEAVER_ISOLATION=shared`.
    pub shared: bool,
    /// The rows.
    pub rows: Vec<Line>,
}

impl Table {
    /// Puts the rows together.
    pub fn new(rows: Vec<Line>, without: Option<&'static str>, shared: bool) -> Self {
        // Nothing shown is nothing held.
        let verdict = rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::NotTried);
        Self { verdict, without, shared, rows }
    }

    /// Prints it, for people.
    pub fn print(&self, ui: &Ui) {
        let here = usize::from(ui.chinese());
        let words = |texts: [&str; 2]| texts[here].to_owned();
        let mut cells = vec![[
            String::new(),
            words(["TRIED", "尝试"]),
            words(["SHOULD BE", "应当"]),
            words(["HAPPENED", "结果"]),
            words(["CONTROL", "对照"]),
        ]];
        cells.extend(self.rows.iter().map(|row| {
            let mark = words(match row.verdict {
                Verdict::Held => ["✓ held", "✓ 守住"],
                Verdict::NotTried => ["! not tried", "! 未验证"],
                Verdict::GotThrough => ["✗ got through", "✗ 被突破"],
            });
            [mark, words(row.what), words(row.must), short(&row.happened), short(&row.control)]
        }));
        println!("{}", table(&cells));
        let count = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        let (all, held) = (self.rows.len(), count(Verdict::Held));
        let (through, untried) = (count(Verdict::GotThrough), count(Verdict::NotTried));
        println!(
            "\n{}",
            crate::text!(
                ui,
                "{held} of {all} rows held, {through} got through, {untried} could not be tried.",
                "共 {all} 项,{held} 项守住,{through} 项被突破,{untried} 项未能验证。"
            )
        );
        if self.shared {
            println!(
                "{}",
                crate::text!(
                    ui,
                    "BEAVER_ISOLATION=shared gives workspaces a network: the services were tried on it, every other address in \
                     one of this command's own, whose addresses stand for those.",
                    "BEAVER_ISOLATION=shared 让工作区接在网络上:四个服务在该网络上实测,其余地址用本命令自建网络里的同名地址代替。"
                )
            );
        }
        for row in self.rows.iter().filter(|row| row.verdict != Verdict::Held) {
            println!("{}: {} | {}", row.id, row.happened, row.control);
        }
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Fills a row in: `tried` and `allowed_here` are the reports from the instance, `allowed` those from its control.
pub fn judge(row: &Row, tried: &[Option<Report>], allowed: &[Option<Report>]) -> Line {
    let is = |outcome| move |report: &&Option<Report>| report.as_ref().map(|report| report.outcome) == Some(outcome);
    let failed = allowed.iter().find(|report| !is(Outcome::Done)(report));
    let all = tried.len();
    let (verdict, happened) = if let Some(done) = tried.iter().position(|report| is(Outcome::Done)(&report)) {
        let done_count = tried.iter().filter(is(Outcome::Done)).count();
        let first = format!("{:?}: {}", row.tried[done], what(&tried[done]));
        (Verdict::GotThrough, format!("{done_count} of {all} got through, first {first}"))
    } else if let Some(broken) = tried.iter().position(|report| !is(Outcome::Refused)(&report)) {
        (Verdict::NotTried, format!("{:?}: {}", row.tried[broken], what(&tried[broken])))
    } else {
        let mut reasons: Vec<String> = tried.iter().map(what).collect();
        reasons.sort();
        reasons.dedup();
        let counted = if all == 1 { String::new() } else { format!("{all} of {all}: ") };
        (Verdict::Held, format!("{counted}{}", reasons.join(", ")))
    };
    let control = match failed {
        Some(report) => format!("failed: {}", what(report)),
        None => allowed.first().map(what).unwrap_or_default(),
    };
    let verdict = if failed.is_some() || allowed.is_empty() { verdict.max(Verdict::NotTried) } else { verdict };
    Line { id: row.id, what: row.what, must: row.must, happened, control, verdict }
}

fn what(report: &Option<Report>) -> String {
    report.as_ref().map_or_else(|| "it was never tried".to_owned(), |report| report.what.clone())
}

#[cfg(test)]
mod tests {
    use attack::Attempt;

    use super::*;

    fn row() -> Row {
        Row {
            id: "row",
            what: ["a", "甲"],
            must: ["b", "乙"],
            tried: vec![Attempt::RawSocket, Attempt::PacketSocket],
            allowed: vec![Attempt::RawSocket],
            allowed_here: Vec::new(),
        }
    }

    fn reports(outcomes: &[Outcome]) -> Vec<Option<Report>> {
        outcomes
            .iter()
            .map(|outcome| Some(Report { attempt: 0, outcome: *outcome, what: format!("{outcome:?}") }))
            .collect()
    }

    #[test]
    fn a_row_holds_only_when_everything_was_refused_and_its_control_succeeded() {
        use Outcome::{Broken, Done, Refused};
        for (tried, allowed, verdict) in [
            (vec![Refused, Refused], vec![Done], Verdict::Held),
            (vec![Refused, Done], vec![Done], Verdict::GotThrough),
            (vec![Refused, Done], vec![Refused], Verdict::GotThrough),
            (vec![Refused, Broken], vec![Done], Verdict::NotTried),
            (vec![Refused, Refused], vec![Refused], Verdict::NotTried),
            (vec![Refused, Refused], vec![Broken], Verdict::NotTried),
            (vec![Refused, Refused], vec![], Verdict::NotTried),
        ] {
            let line = judge(&row(), &reports(&tried), &reports(&allowed));
            assert_eq!(line.verdict, verdict, "{tried:?} {allowed:?}: {line:?}");
        }
        let never = judge(&row(), &[None, None], &reports(&[Done]));
        assert_eq!(never.verdict, Verdict::NotTried);
        let never = judge(&row(), &reports(&[Refused, Refused]), &[None]);
        assert_eq!(never.verdict, Verdict::NotTried);
    }

    #[test]
    fn the_whole_is_as_bad_as_its_worst_row() {
        use Outcome::{Done, Refused};
        let held = || judge(&row(), &reports(&[Refused, Refused]), &reports(&[Done]));
        let untried = || judge(&row(), &reports(&[Refused, Refused]), &reports(&[Refused]));
        let through = || judge(&row(), &reports(&[Done, Done]), &reports(&[Done]));
        assert_eq!(Table::new(vec![held(), held()], None, false).verdict, Verdict::Held);
        assert_eq!(Table::new(vec![held(), untried()], None, false).verdict, Verdict::NotTried);
        assert_eq!(Table::new(vec![untried(), through(), held()], None, false).verdict, Verdict::GotThrough);
        assert_eq!(Table::new(Vec::new(), None, false).verdict, Verdict::NotTried);
        let json = serde_json::to_value(Table::new(vec![held()], None, false)).unwrap();
        assert_eq!((&json["verdict"], &json["rows"][0]["what"]), (&"held".into(), &"a".into()));
    }
}
