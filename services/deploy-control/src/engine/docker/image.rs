//! What is known of an image.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bollard::models::ImageInspect;

/// For how long it is believed: long enough for a burst of sign-ups, short against an upgrade.
const LIFE: Duration = Duration::from_secs(2);

/// An image, as far as a container of it depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// Its id, which says all that is in it.
    pub(super) id: String,
    /// What its containers start.
    pub(super) entrypoint: Vec<String>,
    /// The arguments for that, or what they start when there is no entry point.
    pub(super) command: Vec<String>,
    /// Where it wants volumes.
    pub(super) volumes: Vec<String>,
}

impl From<ImageInspect> for Image {
    fn from(found: ImageInspect) -> Self {
        let config = found.config.unwrap_or_default();
        let mut volumes = config.volumes.unwrap_or_default();
        // In an order of its own: containers of one image are made from the same.
        volumes.sort_unstable();
        Self {
            id: found.id.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            command: config.cmd.unwrap_or_default(),
            volumes,
        }
    }
}

/// Images by name, as they were a moment ago.
#[derive(Debug, Default)]
pub(super) struct Images(HashMap<String, (Instant, Image)>);

impl Images {
    /// The image of this name, when it was looked at lately.
    pub(super) fn get(&mut self, name: &str) -> Option<Image> {
        self.0.retain(|_, (since, _)| since.elapsed() < LIFE);
        self.0.get(name).map(|(_, image)| image.clone())
    }

    /// Keeps what was just seen.
    pub(super) fn keep(&mut self, name: &str, image: &Image) {
        self.0.insert(name.to_owned(), (Instant::now(), image.clone()));
    }
}
