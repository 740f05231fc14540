//! Style, script and icon: embedded, named by their content, and so kept by browsers for good.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use service::Problem;
use sha2::{Digest, Sha256};

struct Asset {
    name: String,
    kind: &'static str,
    content: String,
}

impl Asset {
    fn new(stem: &str, extension: &str, kind: &'static str, content: String) -> Self {
        let digest = Sha256::digest(content.as_bytes());
        let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("{stem}.{hash}.{extension}"), kind, content }
    }

    fn path(&self) -> String {
        format!("/assets/{}", self.name)
    }
}

static STYLE: LazyLock<Asset> = LazyLock::new(|| {
    let content = concat!(
        include_str!("../../../templates/shared/base.css"),
        include_str!("../../../templates/portal/portal.css")
    );
    Asset::new("portal", "css", "text/css; charset=utf-8", content.into())
});
static SCRIPT: LazyLock<Asset> = LazyLock::new(|| {
    let content = include_str!("../../../templates/portal/portal.js");
    Asset::new("portal", "js", "text/javascript; charset=utf-8", content.into())
});
static ICON: LazyLock<Asset> = LazyLock::new(|| {
    Asset::new("beaver", "svg", "image/svg+xml", include_str!("../../../templates/portal/icon.svg").into())
});

/// The path of the style sheet.
pub fn style() -> String {
    STYLE.path()
}

/// The path of the script.
pub fn script() -> String {
    SCRIPT.path()
}

/// The path of the icon.
pub fn icon() -> String {
    ICON.path()
}

/// `GET /assets/{name}`.
pub async fn serve(Path(name): Path<String>) -> Result<Response, Problem> {
    let asset = [&*STYLE, &*SCRIPT, &*ICON]
        .into_iter()
        .find(|asset| asset.name == name)
        .ok_or_else(|| Problem::not_found("not_found"))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(asset.kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
    ];
    Ok((headers, asset.content.as_str()).into_response())
}
