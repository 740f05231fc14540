//! The program itself: killed in the middle, ending with its parent, and what it says in its log.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use token::Purpose;

use crate::{
    fakes::{INITIAL_TOKEN, ORIGIN},
    house::{Events, House, PROVIDER_KEY, eventually},
};

/// The program, which a failing test does not leave behind.
struct Program(Child);

impl Program {
    fn start(house: &House, level: &str, more: &[(&str, &str)]) -> Self {
        let log = File::options().create(true).append(true).open(house.path("log")).unwrap();
        Self::start_logging_to(log.into(), house, level, more)
    }

    fn start_logging_to(log: Stdio, house: &House, level: &str, more: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_app-instance"));
        command.env_clear().envs(house.env()).env("BEAVER_LOG", level).envs(more.iter().copied());
        Self(command.stdin(Stdio::piped()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A chat and a message in it whose first piece has come, in a browser's own words.
async fn ask(house: &House, session: &str, chat: &str, id: &str, content: &str) -> Events {
    let path = format!("/api/chats/{chat}/messages");
    let request = house.edge(Method::POST, &path).json(&json!({ "id": id, "content": content }));
    let request = request.header("cookie", format!("beaver_workspace={session}")).header("origin", ORIGIN);
    Events::of(request.send().await.unwrap())
}

#[tokio::test]
async fn killed_in_the_middle_it_has_everything_that_was_acknowledged() {
    let house = House::build().await;
    house.configure(2, Some(("http://provider.example/v1", "held")));
    let mut program = Program::start(&house, "info", &[]);
    house.until_ready().await;
    let (session, chat, first) = {
        let browser = house.sign_in().await;
        let chat = browser.new_chat().await;
        house.provider.gate.add_permits(3);
        let first = Events::of(browser.say(&chat, "message-1", "first 消息 \u{1f9ab}", false).await).all().await;
        (browser.session.clone(), chat, first)
    };
    assert_eq!(first.last().unwrap().0, "done");
    let mut events = ask(&house, &session, &chat, "message-2", "second").await;
    assert_eq!(events.next().await.unwrap().0, "accepted");
    house.provider.gate.add_permits(1);
    assert_eq!(events.next().await.unwrap().0, "delta");
    program.0.kill().unwrap();
    program.0.wait().unwrap();

    let _again = Program::start(&house, "info", &[]);
    house.until_ready().await;
    let request = house.edge(Method::GET, &format!("/api/chats/{chat}"));
    let response = request.header("cookie", format!("beaver_workspace={session}")).send().await.unwrap();
    let read: Value = response.json().await.unwrap();
    let messages: Vec<_> = read["messages"].as_array().unwrap().iter().map(|m| (&m["content"], &m["status"])).collect();
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[0], (&json!("first 消息 \u{1f9ab}"), &json!("done")));
    assert_eq!(messages[1], (&json!("one <b>two</b> three"), &json!("done")));
    assert_eq!(messages[2], (&json!("second"), &json!("done")));
    assert_eq!(messages[3].1, &json!("interrupted"));
}

#[tokio::test]
async fn it_ends_with_its_parent_when_told_so() {
    let house = House::build().await;
    let mut program = Program::start(&house, "info", &[("INSTANCE_EXIT_WITH_PARENT", "1")]);
    house.until_ready().await;
    assert!(program.0.try_wait().unwrap().is_none());
    drop(program.0.stdin.take());
    eventually(async || program.0.try_wait().unwrap().is_some()).await;
    assert!(program.0.wait().unwrap().success());

    let mut other = Program::start(&house, "info", &[]);
    house.until_ready().await;
    drop(other.0.stdin.take());
    let answer = house.internal(Method::GET, "/healthz").send().await.unwrap();
    assert!(answer.status().is_success() && other.0.try_wait().unwrap().is_none(), "without the setting it stays");
}

/// How many lines of the log nobody took.
async fn lines_dropped(house: &House) -> u64 {
    let metrics = house.internal(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix("beaver_log_lines_dropped_total "));
    values.next().expect("it is counted").parse().unwrap()
}

#[tokio::test]
async fn whoever_does_not_take_the_log_holds_nothing_up() {
    let house = House::build().await;
    let with_parent = [("INSTANCE_EXIT_WITH_PARENT", "1")];
    let mut program = Program::start_logging_to(Stdio::piped(), &house, "trace", &with_parent);
    house.until_ready().await;
    // More than a pipe has room for, and those that wait for it.
    let asking = async {
        while lines_dropped(&house).await == 0 {
            for _ in 0..100 {
                assert!(house.internal(Method::GET, "/healthz").send().await.unwrap().status().is_success());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), asking).await.expect("it answers");
    // What waited comes, once somebody takes it.
    let mut log = program.0.stderr.take().unwrap();
    let all = std::thread::spawn(move || std::io::read_to_string(&mut log).unwrap());
    drop(program.0.stdin.take());
    eventually(async || program.0.try_wait().unwrap().is_some()).await;
    assert!(program.0.wait().unwrap().success());
    assert!(all.join().unwrap().lines().count() > 4096);
}

#[tokio::test]
async fn no_prompt_key_or_code_is_in_the_log_however_much_it_says() {
    let house = House::build().await;
    house.configure(2, Some(("http://provider.example/v1", "held")));
    let mut program = Program::start(&house, "trace", &[("INSTANCE_EXIT_WITH_PARENT", "1")]);
    house.until_ready().await;
    let register = house.authz.assertion(Purpose::Register, "sid", None);
    let body = json!({ "assertion": register });
    house.internal(Method::POST, "/api/auth/register").json(&body).send().await.unwrap();
    let (secret, bind) = house.begin().await;
    let code = house.code(&bind).await;
    let entered = house.finish(&code, &format!("beaver_bind={secret}")).await;
    let session = crate::house::cookie(&entered, "beaver_workspace").unwrap();
    let browser = house.sign_in().await;
    let key = browser.new_key().await;
    let chat = browser.new_chat().await;
    house.provider.gate.add_permits(6);
    Events::of(browser.say(&chat, "message-1", "canary-prompt", false).await).all().await;
    let gateway = house.edge(Method::POST, "/v1/chat/completions").bearer_auth(&key);
    let gateway =
        gateway.body(r#"{"model":"held","stream":true,"messages":"canary-gateway-prompt"}"#).send().await.unwrap();
    assert!(gateway.text().await.unwrap().contains("DONE"));
    browser
        .request(Method::POST, "/settings/provider")
        .form(&[("kind", "openai"), ("model", "m"), ("api_key", "canary-typed-key")])
        .send()
        .await
        .unwrap();
    house.edge(Method::GET, "/v1/models").bearer_auth("canary-wrong-key").send().await.unwrap();

    assert_eq!(lines_dropped(&house).await, 0);
    // What waits to be written is written at the end.
    drop(program.0.stdin.take());
    eventually(async || program.0.try_wait().unwrap().is_some()).await;
    let log = std::fs::read_to_string(house.path("log")).unwrap();
    assert!(log.contains("/v1/chat/completions") && log.contains("TRACE"), "the log says a lot");
    let secrets = [
        "canary-prompt",
        "canary-gateway-prompt",
        "canary-typed-key",
        "canary-wrong-key",
        PROVIDER_KEY,
        INITIAL_TOKEN,
        "<b>two</b>",
        &key,
        &code,
        &secret,
        &session,
        &browser.session,
        &register,
    ];
    let leak = |log: &str| secrets.iter().find(|secret| log.contains(**secret)).map(|secret| (*secret).to_owned());
    assert_eq!(leak(&log), None);
    assert_eq!(leak(&format!("{log} planted: {key}")).as_ref(), Some(&key), "a leak would be found");
}
