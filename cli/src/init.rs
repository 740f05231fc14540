//! `beaver init`: `.env`, once.

use std::{io, path::Path};

use anyhow::Context;
use clock::Entropy;

use crate::{
    Exit,
    args::{Choices, Place},
    envfile, operator,
    stack::{self, Project, Stack},
    text,
    ui::Ui,
};

/// Writes the settings file unless there is one, and prints the operator's link.
///
/// # Errors
/// When a choice is unusable or the file cannot be written.
pub fn init(place: &Place, choices: &Choices, ui: &Ui) -> anyhow::Result<Exit> {
    let project = Project::find(place)?;
    let path = project.env_file.clone();
    let shown = path.display();
    if path.exists() {
        ui.line(text!(ui, "{shown} is there and stays as it is", "{shown} 已存在,保持不变"));
    } else {
        let text = envfile::generate(choices, &stack::shell(), &project.dir, &Entropy::system())?;
        write(&path, &text)?;
        ui.line(text!(
            ui,
            "✓ wrote {shown} with fresh secrets; keep a copy of it with your back-ups",
            "✓ 已写入 {shown},其中的密钥为新生成;请将它与备份一起保存"
        ));
    }
    let stack = Stack::load(project, &stack::shell())?;
    stack.check_secrets()?;
    operator::print_link(&stack, ui)?;
    Ok(Exit::Ok)
}

/// Writes a new settings file; one that somebody else wrote meanwhile is kept.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    match envfile::write_new(path, text) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("cannot write {}", path.display())),
    }
}
