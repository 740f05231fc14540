//! What the operator sees: spinners on a terminal, plain lines elsewhere; progress on standard error.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

/// A message in the operator's language; both texts may name variables as `format!` does.
#[macro_export]
macro_rules! text {
    ($ui:expr, $english:literal, $chinese:literal) => {
        if $ui.chinese() { format!($chinese) } else { format!($english) }
    };
}

/// A text from a workspace's program, for a line on a terminal: nothing in it moves the cursor or begins another line.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// How to talk to whoever runs the command.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    chinese: bool,
    terminal: bool,
}

impl Ui {
    /// From the locale variables (POSIX: `LC_ALL`, `LC_MESSAGES`, `LANG`, the first that is set) and the terminal.
    pub fn from_process() -> Self {
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
            .unwrap_or_default();
        Self { chinese: locale.starts_with("zh"), terminal: std::io::stderr().is_terminal() }
    }

    /// For tests: English, plain lines.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { chinese: false, terminal: false }
    }

    /// The same without spinners: for where logs go to the same terminal.
    pub fn lines_only(self) -> Self {
        Self { terminal: false, ..self }
    }

    /// Whether to speak Chinese.
    pub fn chinese(&self) -> bool {
        self.chinese
    }

    /// A line of its own.
    pub fn line(&self, text: impl AsRef<str>) {
        eprintln!("{}", text.as_ref());
    }

    /// Something that takes a while. `text` is shown at once.
    pub fn step(&self, text: impl Into<String>) -> Step {
        let text = text.into();
        if !self.terminal {
            eprintln!("… {text}");
            return Step(None);
        }
        let bar = ProgressBar::new_spinner().with_message(text);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Step(Some(bar))
    }
}

/// A step under way.
pub struct Step(Option<ProgressBar>);

impl Step {
    /// Shows what it is waiting for now; on a terminal only.
    pub fn now(&self, text: impl Into<String>) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.into());
        }
    }

    /// A line while the step goes on.
    pub fn line(&self, text: impl AsRef<str>) {
        match &self.0 {
            Some(bar) => bar.suspend(|| eprintln!("{}", text.as_ref())),
            None => eprintln!("{}", text.as_ref()),
        }
    }

    /// Ends it well.
    pub fn done(self, text: impl AsRef<str>) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
        eprintln!("✓ {}", text.as_ref());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
