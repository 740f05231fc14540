//! A stack of a test's own on the real Docker engine.
//!
//! Its instances run the test's own program, which must have the "test" of [`instance::ARGUMENTS`](super::instance).
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    models::ContainerInspectResponse,
    query_parameters::{
        BuildImageOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
        PruneContainersOptionsBuilder, PruneImagesOptionsBuilder, RemoveContainerOptionsBuilder,
        RemoveImageOptionsBuilder,
    },
};
use clock::Entropy;
use contracts::InstanceId;
use deploy_control::{
    config::{Config, EngineConfig},
    engine::{Engine, docker::Docker},
    folders::Folders,
};
use futures_util::StreamExt;
use settings::Env;

use super::instance;

/// What is on everything of a stack.
const LABEL: &str = "beaver.stack";
/// How long after a look at what is left the next one is.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub fn config(data_dir: &Path, engine: &str, prefix: &str) -> Config {
    let command = [vec![own_path()], instance::ARGUMENTS.map(str::to_owned).to_vec()].concat().join(" ");
    let pairs = [
        ("BEAVER_DEPLOY_TOKEN", TOKEN),
        ("BEAVER_AUTHZ_INTERNAL_TOKEN", TOKEN),
        ("BEAVER_ROUTER_INTERNAL_TOKEN", TOKEN),
        ("BEAVER_DATA_DIR", data_dir.to_str().unwrap()),
        ("BEAVER_ENGINE", engine),
        ("BEAVER_PREFIX", prefix),
        ("BEAVER_INSTANCE_IMAGE", &format!("{prefix}:test")),
        ("BEAVER_INSTANCE_COMMAND", &command),
    ];
    let mut env = Env::from_pairs(pairs);
    if let Ok(host) = std::env::var("DOCKER_HOST") {
        env = env.with("DOCKER_HOST", host);
    }
    let mut config = Config::from_env(&env).unwrap();
    // A test is not in the folder that a build puts programs into.
    config.engine.shim = env!("CARGO_BIN_EXE_beaver-shim").into();
    config
}

pub fn own_path() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// A stack of this test's own on the real engine; whatever it made is removed with it, also after a panic.
pub struct Host {
    pub client: bollard::Docker,
    pub config: Config,
    pub folders: Folders,
    pub folder: tempfile::TempDir,
}

impl Host {
    /// `None`, said on standard error, when there is no engine; a panic when there must be one.
    pub async fn new() -> Option<Self> {
        let host = Self::without_image().await?;
        host.build_image().await;
        Some(host)
    }

    /// The same, with the image missing.
    pub async fn without_image() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("test-{:08x}", u32::from_le_bytes(Entropy::system().bytes()));
        let config = config(folder.path(), "docker", &prefix);
        let root = rustix::process::geteuid().is_root();
        match Docker::new(&config.engine).capabilities().await {
            Ok(_) if root => {}
            outcome => {
                let why = outcome.err().map_or("not running as root".into(), |error| error.to_string());
                let required = std::env::var("BEAVER_TEST_DOCKER").is_ok_and(|value| value == "required");
                assert!(!required, "BEAVER_TEST_DOCKER=required, but {why}");
                eprintln!("the docker engine was not tested: {why}");
                return None;
            }
        }
        let folders = Folders::open(folder.path(), true, config.instance.clone()).unwrap();
        Some(Self { client: client(&config.engine), config, folders, folder })
    }

    /// Builds the instances' image, in place of one that is there.
    pub async fn build_image(&self) {
        self.build_image_of("/instance").await;
    }

    /// The same, with another program, which may not be there.
    pub async fn build_image_of(&self, program_path: &str) {
        self.build_image_with(program_path, "").await;
    }

    /// The same, with more lines in the image's recipe.
    pub async fn build_image_with(&self, program_path: &str, lines: &str) {
        let program = std::fs::read(own_path()).unwrap();
        let entry = [vec![program_path], instance::ARGUMENTS.to_vec()].concat();
        let (stack, entry) = (&self.config.engine.prefix, serde_json::json!(entry));
        let dockerfile =
            format!("FROM scratch\nLABEL {LABEL}={stack}\nCOPY instance /instance\nENTRYPOINT {entry}\n{lines}");
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes, mode) in [("Dockerfile", dockerfile.as_bytes(), 0o644), ("instance", &program, 0o755)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(mode);
            header.set_cksum();
            archive.append_data(&mut header, name, bytes).unwrap();
        }
        // Nothing of it is from before; looked for all the same, an image that somebody else just removes may be found.
        let options =
            BuildImageOptionsBuilder::new().t(&self.config.engine.image).nocache(true).rm(true).forcerm(true).build();
        let body = bollard::body_full(archive.into_inner().unwrap().into());
        let mut progress = std::pin::pin!(self.client.build_image(options, None, Some(body)));
        while let Some(said) = progress.next().await {
            assert!(said.as_ref().unwrap().error_detail.is_none(), "{said:?}");
        }
    }

    /// The name of an instance's container.
    pub fn name(&self, id: InstanceId) -> String {
        format!("{}-{id}", self.config.engine.prefix)
    }

    pub async fn inspect(&self, id: InstanceId) -> ContainerInspectResponse {
        self.client.inspect_container(&self.name(id), None).await.unwrap()
    }

    /// The images that have this name of the stack's, whatever the tag.
    pub async fn named(&self, name: &str) -> Vec<String> {
        let filters = [("reference".to_owned(), vec![format!("{}/{name}", self.config.engine.prefix)])].into();
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        self.client.list_images(Some(options)).await.unwrap().into_iter().map(|image| image.id).collect()
    }

    /// Removes what of this stack neither runs nor has a name, as `docker system prune` does.
    pub async fn prune(&self) {
        let mut filters = HashMap::from([("label", vec![format!("{LABEL}={}", self.config.engine.prefix)])]);
        let options = PruneContainersOptionsBuilder::new().filters(&filters).build();
        self.client.prune_containers(Some(options)).await.unwrap();
        filters.insert("dangling", vec!["true".to_owned()]);
        let options = PruneImagesOptionsBuilder::new().filters(&filters).build();
        self.client.prune_images(Some(options)).await.unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let (client, engine) = (self.client.clone(), self.config.engine.clone());
        // A drop cannot wait inside the test's runtime, so another thread does, with one of its own.
        let swept = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(sweep(client, engine))
        });
        if swept.join().is_err() {
            eprintln!("containers or images of {} are left", self.config.engine.prefix);
        }
    }
}

async fn sweep(client: bollard::Docker, engine: EngineConfig) {
    let filters = [("label".to_owned(), vec![format!("{LABEL}={}", engine.prefix)])].into();
    // What was abandoned in the middle of its creation is there only a moment later.
    let mut looks = 0;
    for _ in 0..100 {
        if looks == 3 {
            return;
        }
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = client.list_containers(Some(options)).await.unwrap();
        looks = if containers.is_empty() { looks + 1 } else { 0 };
        for container in containers {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let _ = client.remove_container(&container.id.unwrap(), Some(options)).await;
        }
        // Also those whose name another has taken.
        let options = ListImagesOptionsBuilder::new().all(true).filters(&filters).build();
        for image in client.list_images(Some(options)).await.unwrap() {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            let _ = client.remove_image(&image.id, Some(options), None).await;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    panic!("something cannot be removed");
}

fn client(engine: &EngineConfig) -> bollard::Docker {
    let version = bollard::ClientVersion { major_version: 1, minor_version: 41 };
    bollard::Docker::connect_with_unix(engine.docker_socket.to_str().unwrap(), 60, &version).unwrap()
}
