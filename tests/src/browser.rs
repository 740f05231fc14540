//! Chromium, without a screen, through chromedriver (WebDriver, W3C).

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{paths, wait};

/// How long a page may take to become what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with a fresh profile. It and its driver end when it is dropped.
pub struct Browser {
    client: Client,
    driver_url: String,
    session: String,
    http: reqwest::Client,
    _driver: Group,
    _profile: TempDir,
}

/// The driver and the browser that it starts, which would outlive it: a process group of their own, ended as one.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Not waited for yet, so the id is still the driver's.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// CSS pixels.
    pub width: u32,
    /// Whether the person prefers dark.
    pub dark: bool,
}

impl View {
    /// Each combination of light and dark with a phone's and a desk's width.
    pub const ALL: [Self; 4] = [
        Self { width: 1280, dark: false },
        Self { width: 1280, dark: true },
        Self { width: 390, dark: false },
        Self { width: 390, dark: true },
    ];

    fn name(self) -> String {
        format!("{}-{}", if self.dark { "dark" } else { "light" }, self.width)
    }
}

/// How often the driver is started when it ends at once: with `--port=0` it takes a free port of IPv4's and then the same of
/// IPv6's, which somebody else may have by then.
const DRIVER_TRIES: u32 = 3;

/// Starts a driver: what else it says, and its port.
async fn start_driver(profile: &TempDir) -> anyhow::Result<(Group, Lines<BufReader<ChildStdout>>, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env("TMPDIR", profile.path())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map(Group)
        .context("chromedriver is needed (package chromium-driver)")?;
    let mut lines = BufReader::new(driver.0.stdout.take().context("no output")?).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let port = port.trim_end_matches('.').parse()?;
            return Ok((driver, lines, port));
        }
        said.push(line);
    }
    bail!("chromedriver ended at once: {}", said.join(" "))
}

impl Browser {
    /// Starts one that asks for pages in `languages`, such as `zh-CN,zh;q=0.9`.
    ///
    /// # Errors
    /// When Chromium or its driver is not installed or does not start.
    pub async fn start(languages: &str) -> anyhow::Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut tries = 0;
        let (driver, mut lines, port) = loop {
            tries += 1;
            match start_driver(&profile).await {
                Err(error) if tries < DRIVER_TRIES => eprintln!("once more: {error:#}"),
                started => break started?,
            }
        };
        // Whoever reads nothing more lets the driver block on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let plain: Vec<_> = languages.split(',').filter_map(|l| l.split(';').next()).map(str::trim).collect();
        let options = json!({
            "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--force-color-profile=srgb", "--hide-scrollbars", "--window-size=1280,900",
                format!("--user-data-dir={}", profile.path().join("profile").display()),
            ],
            "prefs": {
                "intl.accept_languages": plain.join(","),
                "credentials_enable_service": false,
                "profile.password_manager_leak_detection": false,
            },
        });
        let logging = json!({"browser": "ALL"});
        let capabilities = json!({"goog:chromeOptions": options, "goog:loggingPrefs": logging});
        let Value::Object(capabilities) = capabilities else { unreachable!("it is written as an object above") };
        let driver_url = format!("http://127.0.0.1:{port}");
        let client = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities)
            .connect(&driver_url)
            .await
            .context("chromium does not start")?;
        let session = client.session_id().await?.context("no WebDriver session")?;
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { client, driver_url, session, http, _driver: driver, _profile: profile })
    }

    /// The WebDriver client, for what is not here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Opens an address.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn open(&self, url: &str) -> anyhow::Result<()> {
        self.client.goto(url).await.with_context(|| format!("opening {url}"))
    }

    /// Where it is.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn url(&self) -> anyhow::Result<String> {
        Ok(self.client.current_url().await?.to_string())
    }

    /// The first element that fits a CSS selector and is displayed; waits for it.
    ///
    /// # Errors
    /// When there is none in time: says where the browser is and what it shows.
    pub async fn find(&self, css: &str) -> anyhow::Result<Element> {
        let found = wait::until(format!("{css} is shown"), PATIENCE, || async {
            for element in self.client.find_all(Locator::Css(css)).await? {
                if element.is_displayed().await.unwrap_or(false) {
                    return Ok::<_, fantoccini::error::CmdError>(Some(element));
                }
            }
            Ok(None)
        });
        match found.await {
            Ok(element) => Ok(element),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Puts a text into a field in place of what is there, by keys.
    ///
    /// # Errors
    /// When there is no such field.
    pub async fn fill(&self, css: &str, text: &str) -> anyhow::Result<()> {
        let field = self.find(css).await?;
        field.clear().await?;
        field.send_keys(text).await?;
        Ok(())
    }

    /// Chooses an option of a select by its value.
    ///
    /// # Errors
    /// When there is no such field or option.
    pub async fn choose(&self, css: &str, value: &str) -> anyhow::Result<()> {
        self.find(css).await?.select_by_value(value).await.with_context(|| format!("choosing {value}"))
    }

    /// Clicks.
    ///
    /// # Errors
    /// When there is no such element or something lies over it.
    pub async fn click(&self, css: &str) -> anyhow::Result<()> {
        // A page that changes by itself may put another element in its place in between.
        for _ in 0..20 {
            match self.find(css).await?.click().await {
                Err(error) if error.is_stale_element_reference() => {}
                other => return other.with_context(|| format!("clicking {css}")),
            }
        }
        anyhow::bail!("{css} does not stay long enough to be clicked")
    }

    /// The text a person sees.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn text(&self) -> anyhow::Result<String> {
        Ok(self
            .script("return document.body ? document.body.innerText : ''")
            .await?
            .as_str()
            .unwrap_or_default()
            .into())
    }

    /// The visible text of the first element that fits.
    ///
    /// # Errors
    /// When there is no such element.
    pub async fn text_of(&self, css: &str) -> anyhow::Result<String> {
        Ok(self.find(css).await?.text().await?)
    }

    /// Waits until the page shows a text.
    ///
    /// # Errors
    /// When it does not in time: says what it shows.
    pub async fn sees(&self, text: &str) -> anyhow::Result<()> {
        self.sees_within(text, PATIENCE).await
    }

    /// As [`Browser::sees`], with another patience.
    ///
    /// # Errors
    /// When it does not in time: says what it shows.
    pub async fn sees_within(&self, text: &str, patience: Duration) -> anyhow::Result<()> {
        let seen = wait::until(format!("the page shows “{text}”"), patience, || async {
            Ok::<_, anyhow::Error>(self.text().await?.contains(text).then_some(()))
        });
        match seen.await {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Waits until the browser is at an address that fits.
    ///
    /// # Errors
    /// When it is not in time: says where it is and what it shows.
    pub async fn arrives(&self, what: &str, fits: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let there = wait::until(format!("the browser is at {what}"), Duration::from_secs(90), || async {
            let url = self.url().await?;
            Ok::<_, anyhow::Error>(fits(&url).then_some(url))
        });
        match there.await {
            Ok(url) => Ok(url),
            Err(error) => Err(error.context(self.describe().await)),
        }
    }

    /// Runs a script in the page; its value.
    ///
    /// # Errors
    /// When it throws.
    pub async fn script(&self, source: &str) -> anyhow::Result<Value> {
        Ok(self.client.execute(source, vec![]).await?)
    }

    /// A command of the DevTools protocol.
    ///
    /// # Errors
    /// When the browser refuses it.
    pub async fn devtools(&self, command: &str, parameters: Value) -> anyhow::Result<Value> {
        let answer: Value = self
            .http
            .post(format!("{}/session/{}/goog/cdp/execute", self.driver_url, self.session))
            .json(&json!({"cmd": command, "params": parameters}))
            .send()
            .await?
            .json()
            .await?;
        anyhow::ensure!(answer["value"].get("error").is_none(), "{command}: {}", answer["value"]);
        Ok(answer["value"].clone())
    }

    /// What pages wrote to the console, and what the browser complained about (policies, failed loads), since the
    /// last look.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let answer: Value = self
            .http
            .post(format!("{}/session/{}/se/log", self.driver_url, self.session))
            .json(&json!({"type": "browser"}))
            .send()
            .await?
            .json()
            .await?;
        let lines = answer["value"].as_array().cloned().unwrap_or_default();
        Ok(lines.iter().map(|l| format!("{}: {}", l["level"].as_str().unwrap_or("?"), l["message"])).collect())
    }

    /// Shows the page at a width, light or dark.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn look(&self, view: View) -> anyhow::Result<()> {
        let scheme = if view.dark { "dark" } else { "light" };
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            // A screenshot in the middle of an animation shows nothing.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features})).await?;
        let height = if view.width < 600 { 844 } else { 900 };
        let mobile = view.width < 600;
        let size = json!({"width": view.width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        // Two frames: the first lays out, the second has painted.
        self.client
            .execute_async(
                "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(1)))",
                vec![],
            )
            .await?;
        Ok(())
    }

    /// Keeps a picture of the whole page in `target/screenshots/`.
    ///
    /// # Errors
    /// When it cannot be taken or written.
    pub async fn picture(&self, name: &str, view: View) -> anyhow::Result<PathBuf> {
        let shot =
            self.devtools("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true})).await?;
        let dir = paths::target().join("screenshots");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{name}-{}.png", view.name()));
        let data = shot["data"].as_str().context("no picture")?;
        fs::write(&path, base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data)?)?;
        Ok(path)
    }

    /// Where the browser is and what it shows: what a failure says.
    pub async fn describe(&self) -> String {
        let url = self.url().await.unwrap_or_default();
        let text: String = self.text().await.unwrap_or_default().chars().take(700).collect();
        let dir = paths::target().join("screenshots");
        let path = dir.join(format!("failure-{}.png", self.session));
        if let Ok(png) = self.client.screenshot().await {
            let _ = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, png));
        }
        format!("at {url}, which shows: {text:?}; picture: {}", path.display())
    }

    /// Ends it in good order. Dropping it ends it too.
    ///
    /// # Errors
    /// When the browser is gone already.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.client.clone().close().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chromium_fills_a_form_and_says_what_it_asks_for() {
        let browser = Browser::start("zh-CN,zh;q=0.9").await.unwrap();
        browser.open("data:text/html,<meta name=viewport content='width=device-width'><input id=a><p id=p>no</p><script>a.oninput=()=>p.textContent=a.value</script>").await.unwrap();
        browser.fill("#a", "你好").await.unwrap();
        browser.sees("你好").await.unwrap();
        assert_eq!(browser.script("return navigator.languages.join()").await.unwrap(), "zh-CN,zh");
        browser.look(View { width: 390, dark: true }).await.unwrap();
        let seen = "return [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]";
        assert_eq!(browser.script(seen).await.unwrap(), json!([390, true]));
        browser.close().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_of_a_browser_outlives_it() {
        let browser = Browser::start("en").await.unwrap();
        let profile = browser._profile.path().display().to_string();
        let left = || {
            let commands = fs::read_dir("/proc").unwrap().filter_map(|entry| {
                let command = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
                Some(String::from_utf8_lossy(&command).into_owned())
            });
            commands.filter(|command| command.contains(&profile)).count()
        };
        assert!(left() > 0, "the search finds a running one");
        drop(browser);
        wait::until("its processes end", PATIENCE, || async { anyhow::Ok((left() == 0).then_some(())) }).await.unwrap();
    }
}
