//! Images that instances may have to go back to.
//!
//! Once an image's name has gone to a newer one, nothing but its containers keep the old one from `docker image prune`, and
//! a container makes way before the newer one is tried. So each is given a name of its own, `<prefix>/release:<id>`.

use std::collections::{BTreeSet, HashMap};

use bollard::query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder};

use super::{super::short_release, ASK, Docker, EngineError, ErrorKind, gone_is_fine, spec::LABEL_STACK, within};

impl Docker {
    fn repository(&self) -> String {
        format!("{}/release", self.prefix)
    }

    /// Gives an image its name.
    pub(super) async fn name_release(&self, id: &str) -> Result<(), EngineError> {
        let (repository, tried) = (self.repository(), format!("naming the image {id}"));
        let options = TagImageOptionsBuilder::new().repo(&repository).tag(short_release(id)).build();
        gone_is_fine(within(ASK, &tried, self.client().await?.tag_image(id, Some(options))).await)
    }

    /// Gives these images their names, and takes them from others.
    pub(super) async fn name_releases(&self, ids: &BTreeSet<String>) -> Result<(), EngineError> {
        let client = self.client().await?;
        let filters = HashMap::from([("reference", vec![self.repository()])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let named = within(ASK, "listing images to go back to", client.list_images(Some(options))).await?;
        for id in ids.iter().filter(|id| !named.iter().any(|image| image.id == **id)) {
            self.name_release(id).await?;
        }
        for image in named.iter().filter(|image| !ids.contains(&image.id)) {
            // Nothing but its last name keeps somebody else's image, and that is not ours to remove.
            if image.labels.get(LABEL_STACK) != Some(&self.prefix) {
                // The list has only the names that were asked for.
                let tried = format!("looking for the image {}", image.id);
                let found = within(ASK, &tried, client.inspect_image(&image.id)).await?;
                if found.repo_tags.is_none_or(|names| names.len() < 2) {
                    continue;
                }
            }
            let name = format!("{}:{}", self.repository(), short_release(&image.id));
            let options = RemoveImageOptionsBuilder::new().build();
            let removed =
                within(ASK, &format!("removing {name}"), client.remove_image(&name, Some(options), None)).await;
            match removed.map(drop) {
                // A container is made from it still.
                Err(error) if error.kind == ErrorKind::Conflict => {}
                outcome => gone_is_fine(outcome)?,
            }
        }
        Ok(())
    }
}
