//! What people read, in both languages.

use locale::Locale;

use super::Said;

/// A page's words.
pub struct Text {
    /// The heading.
    pub title: &'static str,
    /// What happened.
    pub what: &'static str,
    /// What to do.
    pub cure: &'static str,
    /// The words on the link to the portal, where one helps.
    pub link: Option<&'static str>,
    /// Before the code.
    pub code_label: &'static str,
    /// Before the request's id.
    pub request_label: &'static str,
}

/// The words for this, in this language.
pub fn of(said: Said, locale: Locale) -> Text {
    let (title, what, cure, link) = match locale {
        Locale::En => english(said),
        Locale::ZhCn => chinese(said),
    };
    let (code_label, request_label) = match locale {
        Locale::En => ("Code", "Request"),
        Locale::ZhCn => ("代码", "请求编号"),
    };
    Text { title, what, cure, link, code_label, request_label }
}

type Words = (&'static str, &'static str, &'static str, Option<&'static str>);

fn english(said: Said) -> Words {
    match said {
        Said::NoSuchAddress => (
            "There is nothing at this address",
            "No workspace has this address.",
            "Check the address for a typing mistake, or sign in to find your own workspace.",
            Some("Go to sign-in"),
        ),
        Said::NotFound => (
            "There is nothing here",
            "This path leads nowhere.",
            "Check the address, or go back to the start page.",
            None,
        ),
        Said::BadRequest | Said::Refused(_) => (
            "This request was not understood",
            "The request is malformed, or larger than is accepted.",
            "If a link brought you here, try another one. If your own program sent it, check how it writes its requests.",
            None,
        ),
        Said::Unavailable => (
            "This workspace is not available right now",
            "It cannot be opened at the moment.",
            "Try again later. If it is yours, sign in to see what is going on.",
            Some("Go to sign-in"),
        ),
        Said::Starting => (
            "Your workspace is starting",
            "This usually takes a few seconds.",
            "You need not do anything: this page continues by itself.",
            None,
        ),
        Said::Stopped => (
            "Your workspace is stopped",
            "It has been stopped; everything in it is kept.",
            "You can start it again in the portal.",
            Some("Go to the portal"),
        ),
        Said::Failed => (
            "Your workspace could not be started",
            "Something went wrong while it was being started. What you keep in it is not affected.",
            "The portal says what happened and lets you try again.",
            Some("Go to the portal"),
        ),
        Said::Unreachable => (
            "Your workspace is not answering",
            "It may be restarting just now.",
            "This page tries again by itself. If it stays this way, restart the workspace in the portal.",
            Some("Go to the portal"),
        ),
        Said::HostRestarting => (
            "The host is restarting",
            "Your workspace is back as soon as the host is. Nothing is lost: everything in it is kept.",
            "You need not do anything: this page continues by itself.",
            None,
        ),
        Said::Timeout => (
            "Your workspace took too long to answer",
            "The request was given up.",
            "Try again. If it stays this way, restart the workspace in the portal.",
            Some("Go to the portal"),
        ),
        Said::NoSession => (
            "You are not signed in here",
            "This needs a session of this workspace, and there is none, or it has ended.",
            "Open the workspace again from the portal. A program cannot sign in here.",
            Some("Go to the portal"),
        ),
        Said::CodeInvalid => (
            "This sign-in link no longer works",
            "It was used already, is too old, or was begun in another browser.",
            "Open the workspace again; you stay signed in at the portal.",
            Some("Go to the portal"),
        ),
        Said::SignedOut => (
            "You have left the workspace",
            "You may still be signed in at the portal.",
            "If others use this computer, sign out there too.",
            Some("Go to the portal"),
        ),
        Said::CrossOrigin => (
            "This was not allowed",
            "It must be sent from a page of this workspace.",
            "Go to the workspace and do it there.",
            None,
        ),
    }
}

fn chinese(said: Said) -> Words {
    match said {
        Said::NoSuchAddress => (
            "这个网址下没有内容",
            "没有使用这个网址的工作区。",
            "请检查网址是否有误，或者登录后查找你自己的工作区。",
            Some("前往登录"),
        ),
        Said::NotFound => ("这里没有内容", "这个路径不存在。", "请检查网址，或返回首页。", None),
        Said::BadRequest | Said::Refused(_) => (
            "无法识别这个请求",
            "请求格式有误，或者超出了允许的大小。",
            "如果你是点击链接来到这里的，请换一个链接；如果请求由你自己的程序发出，请检查它的请求写法。",
            None,
        ),
        Said::Unavailable => (
            "这个工作区暂时无法使用",
            "目前无法打开它。",
            "请稍后再试。如果这是你的工作区，请登录查看具体情况。",
            Some("前往登录"),
        ),
        Said::Starting => ("你的工作区正在启动", "通常只需要几秒钟。", "你无需任何操作，页面会自动继续。", None),
        Said::Stopped => (
            "你的工作区已停止",
            "工作区已经停止，其中的内容都完好保留。",
            "你可以在门户中重新启动它。",
            Some("前往门户"),
        ),
        Said::Failed => (
            "你的工作区未能启动",
            "启动过程中出了问题，你保存的内容不受影响。",
            "门户中会说明原因，你也可以在那里重试。",
            Some("前往门户"),
        ),
        Said::Unreachable => (
            "你的工作区没有响应",
            "它可能正在重新启动。",
            "页面会自动重试。如果一直如此，请在门户中重启工作区。",
            Some("前往门户"),
        ),
        Said::HostRestarting => (
            "主机正在重新启动",
            "主机恢复后，你的工作区也会恢复。不会丢失任何内容，其中的一切都完好保留。",
            "你无需任何操作，页面会自动继续。",
            None,
        ),
        Said::Timeout => (
            "你的工作区响应超时",
            "本次请求已被放弃。",
            "请重试。如果一直如此，请在门户中重启工作区。",
            Some("前往门户"),
        ),
        Said::NoSession => (
            "你尚未登录这个工作区",
            "这需要先登录这个工作区；你还没有登录，或者登录已失效。",
            "请从门户重新打开工作区。程序无法在这里登录。",
            Some("前往门户"),
        ),
        Said::CodeInvalid => (
            "这个登录链接已失效",
            "它已被使用、已过期，或是在另一个浏览器里发起的。",
            "请重新打开工作区，你在门户的登录不受影响。",
            Some("前往门户"),
        ),
        Said::SignedOut => (
            "你已退出工作区",
            "你在门户可能仍处于登录状态。",
            "如果这台电脑还有别人使用，请在门户也退出登录。",
            Some("前往门户"),
        ),
        Said::CrossOrigin => {
            ("不允许这样操作", "这个请求必须从本工作区的页面发出。", "请进入工作区后在那里操作。", None)
        }
    }
}
