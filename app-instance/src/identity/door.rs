//! Calls through `out/identity.sock`.

use std::{path::Path, time::Duration};

use ::door::SocketPath;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// How long a call waits for a socket that is not there yet: the router opens it when it hears of the instance.
const DOOR_WAIT: Duration = Duration::from_secs(4);
/// How long it waits between two tries.
const DOOR_POLL: Duration = Duration::from_millis(20);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 * 1024;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The router's socket is not there, or nobody answers behind it.
    #[error("authz cannot be reached through the identity socket")]
    Unreachable(#[source] anyhow::Error),
    /// authz refused: its status and its error code (RFC 6749, section 5.2, or a problem's).
    #[error("authz refused with {status} {code}")]
    Refused {
        /// The status.
        status: u16,
        /// The code; empty when the answer had none.
        code: String,
    },
    /// The answer was none to this question.
    #[error("authz answered {0} with something unexpected")]
    Unexpected(u16),
}

/// The way to authz.
#[derive(Debug, Clone)]
pub struct Door {
    folder: std::path::PathBuf,
}

impl Door {
    /// The way through `identity.sock` in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Makes a call: `build` makes the request from a client and the base of its URLs. The answer is JSON.
    ///
    /// While the socket is not there, it is tried again for 4 s: nothing was sent then, so nothing is done twice.
    ///
    /// # Errors
    /// Each [`DoorError`].
    pub async fn call<T: DeserializeOwned>(
        &self,
        build: impl Fn(&reqwest::Client, &str) -> reqwest::RequestBuilder,
    ) -> Result<T, DoorError> {
        let unreachable = |error: anyhow::Error| DoorError::Unreachable(error);
        let until = Instant::now() + DOOR_WAIT;
        let response = loop {
            // A client a call: calls are rare, and a kept connection would outlive the router's restart.
            let attempt = async {
                let socket = SocketPath::new(&self.folder, "identity.sock")?;
                let client = reqwest::Client::builder()
                    .unix_socket(socket.as_ref())
                    .redirect(reqwest::redirect::Policy::none())
                    .timeout(CALL)
                    .build()?;
                Ok::<_, anyhow::Error>(build(&client, "http://authz").send().await?)
            };
            match attempt.await {
                Ok(response) => break response,
                Err(error) => {
                    let connecting = error.downcast_ref::<reqwest::Error>().is_none_or(reqwest::Error::is_connect);
                    if !connecting || Instant::now() >= until {
                        return Err(unreachable(error));
                    }
                    tokio::time::sleep(DOOR_POLL).await;
                }
            }
        };
        let status = response.status();
        let body = read(response).await.map_err(unreachable)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| DoorError::Unexpected(status.as_u16()));
        }
        // 502 to 504 are the router's: authz is away.
        if matches!(status.as_u16(), 502..=504) {
            return Err(unreachable(anyhow::anyhow!("the router answered {status}")));
        }
        #[derive(serde::Deserialize)]
        struct Refusal {
            #[serde(default)]
            error: String,
            #[serde(default)]
            code: String,
        }
        let Refusal { error, code } =
            serde_json::from_slice(&body).unwrap_or(Refusal { error: String::new(), code: String::new() });
        let mut code = if error.is_empty() { code } else { error };
        code.retain(|c| c.is_ascii_alphanumeric() || c == '_');
        code.truncate(64);
        Err(DoorError::Refused { status: status.as_u16(), code })
    }
}

async fn read(mut response: reqwest::Response) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= MAX_ANSWER, "the answer is longer than {MAX_ANSWER} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
