//! The one-time link that makes the first operator account.

use secrecy::ExposeSecret;

use crate::{stack::Stack, text, ui::Ui};

/// The link: `<portal>/operator/setup?token=<BEAVER_OPERATOR_TOKEN>`.
///
/// # Errors
/// [`settings::Error`] when a setting behind it is unusable.
pub fn link(stack: &Stack) -> Result<String, settings::Error> {
    let token = stack.env.secret("BEAVER_OPERATOR_TOKEN")?;
    let portal = stack.env.public_address()?.portal_origin();
    let query: String =
        url::form_urlencoded::Serializer::new(String::new()).append_pair("token", token.expose_secret()).finish();
    Ok(format!("{portal}/operator/setup?{query}"))
}

/// Prints it on standard output: it is what one runs the command for.
///
/// # Errors
/// As [`link`].
pub fn print_link(stack: &Stack, ui: &Ui) -> Result<(), settings::Error> {
    let link = link(stack)?;
    println!(
        "{}",
        text!(ui, "The operator's account is made here, once: {link}", "在此创建管理员账号(仅一次有效):{link}")
    );
    Ok(())
}

/// Prints where people go, and what to know about names under `localhost`.
///
/// # Errors
/// As [`link`].
pub fn print_addresses(stack: &Stack, ui: &Ui) -> Result<(), settings::Error> {
    let public = stack.env.public_address()?;
    let (portal, workspace) = (public.portal_origin(), public.workspace_origin("<name>"));
    println!("{}", text!(ui, "People sign up and sign in at: {portal}", "用户在此注册和登录:{portal}"));
    println!("{}", text!(ui, "Workspaces are at:             {workspace}", "工作区的地址:{workspace}"));
    if public.base_domain() == "localhost" || public.base_domain().ends_with(".localhost") {
        println!(
            "{}",
            text!(
                ui,
                "Browsers and curl find *.localhost by themselves; other programs need libnss-myhostname\n\
                 (Debian, Ubuntu: sudo apt install libnss-myhostname).",
                "浏览器和 curl 能直接解析 *.localhost;其他程序需要 libnss-myhostname\n\
                 (Debian、Ubuntu:sudo apt install libnss-myhostname)。"
            )
        );
    }
    Ok(())
}
